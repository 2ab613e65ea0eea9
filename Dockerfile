# syntax=docker/dockerfile:1

FROM python:3.12-slim AS wheel
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The backend that builds the project is in the development lock, with its hashes like everything else.
COPY requirements-dev.lock ./
RUN python -m pip install --require-hashes --only-binary :all: -r requirements-dev.lock
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY contracts contracts
COPY sql sql
COPY worker worker
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.12-slim AS environment
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv --without-pip /opt/sendoff
COPY requirements.lock ./
RUN python -m pip --python /opt/sendoff/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY --from=wheel /wheels /wheels
RUN python -m pip --python /opt/sendoff/bin/python install --no-deps --no-index /wheels/*.whl

FROM python:3.12-slim
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
