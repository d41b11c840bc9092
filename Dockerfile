# Does what `make run` does, in a container. Written for any Docker or Podman; no engine was at hand to run it.
#   docker compose up                                          (compose.yaml sets the key, the ports and the volume)
#   docker build --build-arg EXTRAS=ray -t mofang:ray .        for a cluster's machines (deploy/, docs/cluster.md)
FROM python:3.12-slim

# libgomp1: the prebuilt llama.cpp needs it, and slim images leave it out.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# A mirror: docker compose build --build-arg PIP_INDEX_URL=…   What more is installed: --build-arg EXTRAS=ray,ocr
ARG PIP_INDEX_URL
ARG EXTRAS
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/mofang
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY docs docs
RUN pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}" \
    && useradd --create-home --uid 1000 mofang \
    && mkdir /data && chown mofang /data

USER mofang
# In a container the gateway must listen beyond loopback, so it demands MOFANG_API_KEY.
ENV MOFANG_HOME=/data MOFANG_HOST=0.0.0.0
VOLUME /data
EXPOSE 8642 8643
HEALTHCHECK --interval=30s --start-period=60s \
    CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8642/healthz', timeout=5)"
CMD ["mofang", "up"]
