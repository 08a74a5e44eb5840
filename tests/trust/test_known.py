"""The lists of what runs unasked: complete for what medunet renders, and without a gadget."""

from __future__ import annotations

import ast
import inspect
import json
import pydoc
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from monai.bundle import ComponentLocator

from medunet.bundle import render, shipped_bundles
from medunet.bundle.check import accepted_arguments
from medunet.trust import KNOWN_EXPRESSIONS, KNOWN_TARGETS, is_known_expression, missing_from_known

GADGETS = {"eval", "exec", "compile", "__import__", "locate", "import_module", "run_cmd", "system", "Popen"}
"""Calls that turn a string into something that runs; `optional_import` does so where its name is no constant."""
LOADERS = {"load", "loads", "hf_hub_download", "load_url", "load_state_dict_from_url", "urlopen", "urlretrieve"}
PICKLES = {"torch", "pickle", "np", "numpy", "joblib"}

JUDGED_BY_ARGUMENT = {"LoadImaged": {"locate", "optional_import"}}
"""Gadgets of a target whose argument is judged by itself, see GADGET_ARGUMENTS."""


def find(target: str) -> Any:
    module = ComponentLocator().get_component_module_name(target)
    module = module[0] if isinstance(module, list) else module
    found = pydoc.locate(target if module is None else f"{module}.{target}")
    assert found is not None, target
    return found


def sources(found: Any) -> Iterator[str]:
    """Of a target, the classes that it is made of, and the wrapped transforms that its constructor makes."""
    classes = [c for c in found.__mro__ if c is not object] if inspect.isclass(found) else [found]
    for one in classes:
        if one.__module__.split(".")[0] in ("monai", "medunet"):
            yield textwrap.dedent(inspect.getsource(one))


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def gadgets(source: str) -> set[str]:
    found = set()
    for name, node in calls(source):
        owner = getattr(getattr(node.func, "value", None), "id", None)
        if name in GADGETS and not (name == "eval" and isinstance(node.func, ast.Attribute)):  # network.eval()
            if name == "compile" and owner in ("torch", "re"):
                continue
            found.add(name)
        if name == "optional_import" and not all(isinstance(a, ast.Constant) for a in node.args[:1]):
            found.add(name)
        if name == "optional_import" and any(
            k.arg == "name" and not isinstance(k.value, ast.Constant) for k in node.keywords
        ):
            found.add(name)
        if name in LOADERS and (owner in PICKLES or name not in ("load", "loads")):
            safe = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
            found |= set() if safe else {f"{owner}.{name}"}
    return found


@pytest.mark.parametrize("target", sorted(KNOWN_TARGETS))
def test_no_target_turns_a_string_into_code(target: str) -> None:
    found = find(target)
    bad = set().union(*map(gadgets, sources(found)))
    inner = f"{found.__module__.replace('dictionary', 'array')}.{found.__name__.removesuffix('d')}"
    wrapped = pydoc.locate(inner) if found.__name__.endswith("d") else None
    if wrapped is not None:
        bad |= set().union(*map(gadgets, sources(wrapped)))
    assert bad <= JUDGED_BY_ARGUMENT.get(target, set())


def test_the_reading_of_sources_finds_gadgets() -> None:
    from monai.bundle import ConfigWorkflow
    from monai.inferers import PatchInferer
    from monai.transforms import LoadImage, SaveImage

    for one in (LoadImage, SaveImage, PatchInferer):
        assert "locate" in set().union(*map(gadgets, sources(one)))
    assert gadgets("torch.load(p)") == {"torch.load"}
    assert gadgets("torch.load(p, weights_only=True)") == set()
    assert ConfigWorkflow.__name__ not in KNOWN_TARGETS


GADGET_TARGETS = [
    *("os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "monai.utils.run_cmd"),
    *("monai.utils.misc.run_cmd", "torch.load", "torch.hub.load", "pickle.loads", "monai.bundle.run"),
    *("monai.bundle.load", "monai.bundle.ConfigWorkflow", "monai.bundle.ConfigParser"),
    *("monai.transforms.os.system", "monai.transforms.Lambda", "Lambdad", "SaveImaged", "SaveImage"),
    *("PatchInferer", "NumpyReader", "PersistentDataset", "monai.data.PersistentDataset", "CheckpointLoader"),
    *("monai.utils.optional_import", "monai.apps.download_and_extract", "FlexibleUNet"),
    *("torch.nn.modules.module.torch.load", "torch.utils.cpp_extension.load", "medunet.files.os.system"),
    *("medunet.runtime.weights.pickle.loads", "monai.transforms.TorchVisiond", "TorchVisiond"),
    *("ClassesToIndicesd.os", "pdb.runcall", "functools.partial", "numpy.load", "MLFlowHandler"),
]


def test_gadgets_are_not_on_the_list() -> None:
    assert KNOWN_TARGETS.isdisjoint(GADGET_TARGETS)


@pytest.mark.parametrize("name", shipped_bundles())
def test_what_is_rendered_is_known(name: str) -> None:
    configs = [json.loads(text) for file, text in render(name).items() if file.endswith(".json")]
    assert missing_from_known(configs) == (set(), set())


def test_known_expressions_call_nothing_but_these() -> None:
    """Whoever adds one looks at what it calls: with any plain values and reviewed targets it must be harmless."""
    called = set()
    for text in KNOWN_EXPRESSIONS:
        if text.startswith("$import "):
            continue
        python = text[1:].replace("@", "ref_").replace("#", "_")
        called |= {
            ast.unparse(node.func) for node in ast.walk(ast.parse(python, mode="eval")) if isinstance(node, ast.Call)
        }
    plain = {name for name in called if "ref_" not in name}
    assert plain == {
        *("dict", "zip", "len", "int", "max", "str"),
        "os.environ.get",
        *("medunet.datasets.datalist", "medunet.datasets.list_inputs", "medunet.runtime.resolve_device"),
        *("monai.handlers.from_engine", "monai.utils.path_to_sqlite_uri"),
        *("torch.manual_seed", "torch.device", "torch.cuda.is_available", "medunet.networks.synchronize_norms"),
        *("medunet.training.join_processes", "medunet.training.leave_processes", "medunet.training.was_restarted"),
    }
    methods = {name.rpartition(".")[2] for name in called - plain}
    assert methods == {"run", "to", "parameters", "output_size", "index"}


def test_imports_are_of_these_four() -> None:
    imported = {text.split()[1].split(".")[0] for text in KNOWN_EXPRESSIONS if text.startswith("$import ")}
    assert imported == {"os", "torch", "monai", "medunet"}


@pytest.mark.parametrize(
    "text", ["$1 + 1", " $@evaluator.run()", "$@evaluator.run() ", "$@ckpt_dir + '/fold_1.pt' or 1"]
)
def test_an_expression_is_compared_whole(text: str) -> None:
    assert not is_known_expression(text)


def test_targets_can_be_called_with_their_arguments_known() -> None:
    for target in KNOWN_TARGETS:
        accepted_arguments(target)
