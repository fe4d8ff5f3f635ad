# One hospital site, on the CPU. Build from the repository's root:
#   docker build -f deploy/client.Dockerfile -t dermino-client:0.1.0 .
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
    && install -d -o dermino -g dermino -m 0700 /var/lib/dermino /var/cache/dermino
COPY --from=build /opt/dermino /opt/dermino
ENV PATH=/opt/dermino/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/dermino \
    DERMINO_CACHE=/var/cache/dermino \
    DERMINO_SITES=/etc/dermino/sites \
    DERMINO_HEALTH=127.0.0.1:8081 \
    FLWR_HOME=/var/lib/dermino/flwr \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/dermino
VOLUME ["/var/lib/dermino", "/var/cache/dermino"]
ENTRYPOINT ["dermino-client"]
# The first start reads every image before it connects: nothing answers until that is done.
HEALTHCHECK --interval=30s --timeout=15s --start-period=4h --retries=3 \
    CMD ["sh", "-c", "exec dermino health \"$DERMINO_HEALTH\""]
