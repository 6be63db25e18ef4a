# Image of Evergreen with every command. Mount the project (params.yaml, data, var) at /project; the code is in the image.
# Nothing outside /project and /tmp is written. deploy/serving/Dockerfile is the small image, for serving alone.
ARG BASE=python:3.11-slim
FROM ${BASE} AS packages
WORKDIR /build
COPY requirements.lock .
RUN python -m venv /venv \
 && awk '/^uv==/ {on = 1} on {print} on && !/\\$/ {exit}' requirements.lock > uv.lock \
 && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r uv.lock \
 && VIRTUAL_ENV=/venv /venv/bin/uv pip sync --no-cache --require-hashes requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY tasks tasks
COPY monitoring monitoring
COPY serving serving
COPY flows flows
RUN VIRTUAL_ENV=/venv /venv/bin/uv pip install --no-cache --no-deps --no-build-isolation . \
 && /venv/bin/python -m compileall -q /venv/lib

FROM ${BASE}
# git: lineage and DVC; libgomp1: LightGBM and scikit-learn
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends git libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --home-dir /tmp --no-create-home evergreen \
 && mkdir /project && chown evergreen /project
COPY --from=packages /venv /venv
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 DVC_NO_ANALYTICS=1 DO_NOT_TRACK=1
WORKDIR /project
USER 10001
EXPOSE 8080
VOLUME /project
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/ready', timeout=2)"]
ENTRYPOINT ["evergreen"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
