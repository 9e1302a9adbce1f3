# Both stages are based on BASE, which must have Python 3.11 or later as python3; the first one also needs its pip, venv and a shell.
# The digest counts, not the tag, which can be moved: docs/deployment.md explains how to look one up.
ARG BASE=docker.io/library/python:3.13.9-slim-trixie@sha256:326df678c20c78d465db501563f3492d17c42a4afe33a1f2bf5406a1d56b0e86

FROM ${BASE} AS build
SHELL ["/bin/sh", "-euc"]
WORKDIR /src
COPY requirements.lock ./
# No build backend is downloaded: the dependencies are wheels with known hashes, and the exporter is copied.
RUN python3 -m venv --without-pip /opt/creatify-exporter; \
    python3 -m pip --python /opt/creatify-exporter/bin/python3 install --no-cache-dir --no-compile --only-binary :all: \
      --require-hashes --requirement requirements.lock
COPY exporter/creatify_exporter /src/creatify_exporter
# Compiled here once, because a container with a read-only root cannot. By hash, so that the files' dates do not matter.
RUN packages="$(/opt/creatify-exporter/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
    cp -r creatify_exporter "$packages"; \
    printf '%s\n' '#!/opt/creatify-exporter/bin/python3' 'import sys' 'from creatify_exporter.__main__ import main' 'sys.exit(main())' \
      > /opt/creatify-exporter/bin/creatify-exporter; \
    chmod 0755 /opt/creatify-exporter/bin/creatify-exporter; \
    python3 -m compileall -q --invalidation-mode unchecked-hash "$packages"; \
    mkdir -p /state

FROM ${BASE}
ARG VERSION=0.1.0
ARG CREATIFY_EXPORTER_REVISION=unknown
LABEL org.opencontainers.image.title="creatify-exporter" \
      org.opencontainers.image.description="Prometheus exporter for Creatify tasks and credits" \
      org.opencontainers.image.source="https://github.com/creatify-exporter/creatify-exporter" \
      org.opencontainers.image.documentation="https://github.com/creatify-exporter/creatify-exporter/blob/main/docs/deployment.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${CREATIFY_EXPORTER_REVISION}"
COPY --from=build /opt/creatify-exporter /opt/creatify-exporter
COPY --from=build --chown=65532:65532 /state /var/lib/creatify-exporter
ENV PATH=/opt/creatify-exporter/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    STATE_DIRECTORY=/var/lib/creatify-exporter \
    CREATIFY_EXPORTER_REVISION=${CREATIFY_EXPORTER_REVISION}
# A number, so that Kubernetes can check that it is not root.
USER 65532:65532
WORKDIR /var/lib/creatify-exporter
VOLUME ["/var/lib/creatify-exporter"]
EXPOSE 10081
STOPSIGNAL SIGTERM
# No HEALTHCHECK: the orchestrator probes /-/ready and /-/healthy.
ENTRYPOINT ["/opt/creatify-exporter/bin/creatify-exporter"]
