# syntax=docker/dockerfile:1
# `pusa serve` for NVIDIA GPUs and CPUs. The default wheel of torch is for both. For a smaller image without CUDA, build
# it with --build-arg PIP_EXTRA_INDEX_URL=ADDRESS, the address of the CPU wheels of torch.
#
#     docker build --tag pusa .
#     docker run --gpus all --publish 127.0.0.1:8000:8000 --volume pusa-data:/data --volume pusa-cache:/cache \
#         --volume ./api-keys:/run/secrets/api_keys:ro pusa
#
# /data has the videos and the queue. /cache has models from the hub. The user of the image has the number 10001.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ARG EXTRAS=serve
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/pip
WORKDIR /src
RUN python -m venv /opt/pusa
ENV PATH=/opt/pusa/bin:$PATH
COPY constraints.txt ./
# The largest package has a layer of its own, so that a change of the code does not install it again.
RUN --mount=type=cache,target=/pip \
    pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/pip \
    pip install --constraint constraints.txt ".[$EXTRAS]"

FROM python:${PYTHON}-slim-bookworm
RUN useradd --system --uid 10001 --create-home pusa \
    && install --directory --owner=pusa /data /cache
COPY --from=build /opt/pusa /opt/pusa
ENV PATH=/opt/pusa/bin:$PATH PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache
USER 10001
WORKDIR /data
VOLUME ["/data", "/cache"]
EXPOSE 8000
# The first start loads a model from the hub, so the first failures do not count.
HEALTHCHECK --interval=15s --timeout=10s --start-period=10m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=8)"]
ENTRYPOINT ["pusa"]
CMD ["serve", "--model", "tiny", "--host", "0.0.0.0", "--port", "8000", "--data", "/data", \
     "--api-keys", "/run/secrets/api_keys"]
