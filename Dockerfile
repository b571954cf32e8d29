# One image for everything: a node, the simulated backend, the commands.
FROM python:3.11-slim-bookworm

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY iemas iemas
COPY auctioneer auctioneer
COPY node node
RUN python -m venv /opt/iemas \
    && /opt/iemas/bin/pip install --no-cache-dir . \
    && mkdir -p /data /market /kv \
    && chown 1000:1000 /data /market /kv

# Named volumes take the owner of the folder that they are first mounted on.
USER 1000:1000
ENV PATH=/opt/iemas/bin:$PATH HOME=/data PYTHONUNBUFFERED=1
EXPOSE 7470 7480
ENTRYPOINT ["iemas-node"]
CMD ["--help"]
