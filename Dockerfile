# clipgraft for NVIDIA GPUs, or with --build-arg TORCH_INDEX=... for CPUs; docs/docker.md has the commands.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build

ARG TORCH_INDEX=""
ARG EXTRAS=app,data,heif,lms,lora,openvino,tracking
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/clipgraft
ENV PATH=/opt/clipgraft/bin:$PATH

# torch is most of the image, and a layer of its own. On Linux the package index has the CUDA build alone.
COPY constraints.txt /build/
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint /build/constraints.txt torch

COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
RUN pip install --constraint /build/constraints.txt "/build[$EXTRAS]"

FROM python:${PYTHON}-slim

RUN useradd --create-home --uid 1000 clipgraft \
    && mkdir /models /cache /data \
    && chown clipgraft:clipgraft /models /cache /data
COPY --from=build /opt/clipgraft /opt/clipgraft
ENV PATH=/opt/clipgraft/bin:$PATH HF_HOME=/models XDG_CACHE_HOME=/cache MPLCONFIGDIR=/cache/matplotlib

USER clipgraft
WORKDIR /data
VOLUME ["/models", "/cache", "/data"]
EXPOSE 8080
ENTRYPOINT ["clipgraft"]
CMD ["--help"]
