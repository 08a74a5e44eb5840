"""Unusual words in DICOM headers, and the files in which they occur."""

import zlib
from collections.abc import Iterator
from pathlib import Path

# DICOM results may keep these, because they identify the study
LINKS = {
    "PatientName": "Zyxqwv^Canaryna",
    "PatientID": "CANARYPID77",
    "PatientBirthDate": "19031129",
    "StudyID": "CANARYSTUDY",
    "AccessionNumber": "CANARYACC",
    "StudyDate": "20010917",
    "StudyTime": "041357",
}
SECRETS = {
    "ReferringPhysicianName": "Referrix^Canary",
    "OtherPatientNames": "Othernix^Canary",
    "PatientAddress": "Canarystreet 9",
    "PatientTelephoneNumbers": "+49CANARY123",
    "PatientComments": "Canarycomment",
    "PatientMotherBirthName": "Mothernix",
    "PatientAge": "097Y",
    "EthnicGroup": "Canaryethnic",
    "Occupation": "Canaryjob",
    "AdditionalPatientHistory": "Canaryhistory",
    "MedicalRecordLocator": "CANARYLOC",
    "InstitutionName": "Canaryclinic",
    "InstitutionAddress": "Clinicstreet 1",
    "InstitutionalDepartmentName": "Canaryward",
    "StationName": "CANARYSTATION",
    "OperatorsName": "Operatrix^Canary",
    "PerformingPhysicianName": "Performix^Canary",
    "PhysiciansOfRecord": "Recordix^Canary",
    "NameOfPhysiciansReadingStudy": "Readix^Canary",
    "RequestingPhysician": "Requestix^Canary",
    "AdmissionID": "CANARYADM",
    "AdmittingDiagnosesDescription": "Canarydiagnosis",
    "StudyDescription": "Canarystudytext",
    "SeriesDescription": "Canaryseriestext",
    "ProtocolName": "Canaryprotocol",
    "DeviceSerialNumber": "CANARYDEVICE",
    "ImageComments": "Canaryimagetext",
    "ClinicalTrialSubjectID": "CANARYTRIAL",
    "ClinicalTrialSponsorName": "Canarysponsor",
    "SeriesDate": "20020318",
    "AcquisitionDate": "20030419",
    "ContentDate": "20040520",
}
WORDS = {word for value in (*LINKS.values(), *SECRETS.values()) for word in value.split("^") if word != "Canary"}


def readable(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, and the content of its compressed parts."""
    content = path.read_bytes()
    yield content
    for start in (i for i in range(len(content)) if content[i : i + 2] in (b"\x1f\x8b", b"x\x9c", b"x\xda", b"x\x01")):
        try:
            yield zlib.decompressobj(wbits=47).decompress(content[start:], 1 << 22)
        except zlib.error:
            continue


def leaks(folder: Path, *, words: set[str]) -> set[tuple[str, str]]:
    """Return the words that occur in names and contents of the files of a folder, by file."""
    leaked = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        leaked |= {(name, word) for word in words if word.lower() in name.lower()}
        if path.is_file() and path.stat().st_size < 4 << 20:
            contents = list(readable(path)) if path.stat().st_size < 200_000 else [path.read_bytes()]
            leaked |= {(name, word) for word in words for content in contents if word.encode() in content}
    return leaked
