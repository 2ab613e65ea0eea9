# syntax=docker/dockerfile:1

# By its digest, so that a build today and one next year begin alike. To take a newer one:
#   docker buildx imagetools inspect python:3.13-slim-trixie
ARG PYTHON=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

FROM ${PYTHON} AS wheel
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# What builds the project is pinned with its hashes like everything else.
COPY requirements-build.lock ./
RUN python -m pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY contracts contracts
COPY sql sql
COPY worker worker
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON} AS environment
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv --without-pip /opt/sendoff
COPY requirements.lock ./
RUN python -m pip --python /opt/sendoff/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY --from=wheel /wheels /wheels
RUN python -m pip --python /opt/sendoff/bin/python install --no-deps --no-index /wheels/*.whl

FROM ${PYTHON}
COPY --from=environment /opt/sendoff /opt/sendoff
# A volume that is mounted here takes its owner.
RUN install --directory --owner=10001 --group=10001 /var/lib/sendoff/tracker-spool /var/lib/sendoff/returned-mail
ENV PATH=/opt/sendoff/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SENDOFF_HTTP_HOST=0.0.0.0 \
    SENDOFF_HTTP_PORT=8080 \
    SENDOFF_LOG_FORMAT=json \
    SENDOFF_RETURNED_FOLDER=/var/lib/sendoff/returned-mail \
    SENDOFF_TRACKER_SPOOL=/var/lib/sendoff/tracker-spool
WORKDIR /app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Alive, not ready: a worker that waits for its broker or its database is well, and starting it anew mends nothing.
HEALTHCHECK --interval=15s --timeout=6s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['SENDOFF_HTTP_PORT'] + '/health/live', timeout=5)"]
ENTRYPOINT ["sendoff"]
CMD ["run"]
