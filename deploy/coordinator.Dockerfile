# The coordinator: flower-superlink and the dermino command. Build from the repository's root:
#   docker build -f deploy/coordinator.Dockerfile -t dermino-coordinator:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/dermino
COPY constraints.txt ./
COPY pyproject.toml README.md LICENSE ./
COPY dermino_core ./dermino_core
COPY strategies ./strategies
COPY client ./client
COPY server ./server
# With an index of CPU builds of torch (--build-arg PIP_OPTIONS=...) the image is gigabytes smaller.
ARG PIP_OPTIONS=""
RUN /opt/dermino/bin/pip install --no-cache-dir --constraint constraints.txt ${PIP_OPTIONS} .

FROM python:3.11.13-slim-bookworm
RUN groupadd --gid 10001 dermino \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/dermino --shell /usr/sbin/nologin dermino \
    && install -d -o dermino -g dermino -m 0700 /var/lib/dermino /var/lib/dermino/flwr
COPY --from=build /opt/dermino /opt/dermino
COPY --chown=10001:10001 deploy/flower-config.toml /var/lib/dermino/flwr/config.toml
ENV PATH=/opt/dermino/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/dermino \
    FLWR_HOME=/var/lib/dermino/flwr \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/dermino
VOLUME /var/lib/dermino
# 8000 has the Control API on it: publish it nowhere, put the proxy in front.
CMD ["flower-superlink", "--host", "0.0.0.0", "--port", "8000", \
     "--ssl-ca-certfile", "/etc/dermino/tls/ca.crt", \
     "--ssl-certfile", "/etc/dermino/tls/server.pem", \
     "--ssl-keyfile", "/etc/dermino/tls/server.key", \
     "--enable-supernode-auth", \
     "--database", "/var/lib/dermino/superlink.db", \
     "--disable-runtime-dependency-installation", \
     "--health-server-address", "127.0.0.1:8001"]
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["dermino", "health", "127.0.0.1:8001", "--http", "https://localhost:8000", \
         "--ca", "/etc/dermino/tls/ca.crt"]
