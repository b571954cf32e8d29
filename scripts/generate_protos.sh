#!/bin/sh
# Regenerates iemas/v1 from protos/. `make protos-check` fails if the result differs.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
PATH="$(dirname "$python"):$PATH"
rm -f iemas/v1/*_pb2*.py*
"$python" -m grpc_tools.protoc -Iprotos --python_out=. --mypy_out=quiet:. protos/iemas/v1/*.proto
"$python" -m grpc_tools.protoc -Iprotos --grpc_python_out=. --mypy_grpc_out=quiet:. \
  protos/iemas/v1/*_service.proto
