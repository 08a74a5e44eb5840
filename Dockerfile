# syntax=docker/dockerfile:1
# CPU:   docker build -t medunet:cpu .
# CUDA:  docker build -t medunet:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# Ray:   docker build -t medunet:ray --build-arg EXTRAS=dicom,export,openvino,ray .   (250 MB more)
# Label: docker build -t medunet:label --target label .   (on CUDA with the same --build-arg)
# CUDA's libraries come with torch's wheel, so both have the same base; the host needs a driver and NVIDIA's container toolkit.
# another Python or registry: --build-arg BASE=registry.example/python:3.11-slim
ARG BASE=python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM ${BASE} AS build
ARG TORCH_INDEX
ARG EXTRAS=dicom,export,openvino
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /source
# torch first and alone, in a layer of its own: what follows may neither choose its build nor load it again
COPY scripts/constraints.txt scripts/
RUN pip install --constraint scripts/constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY bundles bundles
COPY medunet medunet
RUN pip install --constraint scripts/constraints.txt ".[$EXTRAS]"

FROM ${BASE} AS runtime
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin medunet \
    && install --directory --owner medunet /data /cache
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH MEDUNET_CACHE_DIR=/cache MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /cache
ENTRYPOINT ["medunet"]
CMD ["--help"]

# MONAI Label has an environment of its own, see docs/howto/annotate.md
FROM runtime AS label
ARG TORCH_INDEX
USER root
ENV MEDUNET_LABEL_ENV=/label
RUN medunet label setup --torch-index "$TORCH_INDEX"
USER 10001
EXPOSE 8000

# the last stage is what is built without --target
FROM runtime
