#!/bin/sh
# Regenerates iemas/v1 from protos/, here or under the directory given.
# `make protos-check` fails if the result differs from what is committed.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
output="${1:-.}"
PATH="$(dirname "$python"):$PATH"
rm -f "$output"/iemas/v1/*_pb2*.py*
"$python" -m grpc_tools.protoc -Iprotos --python_out="$output" --mypy_out=quiet:"$output" \
  protos/iemas/v1/*.proto
"$python" -m grpc_tools.protoc -Iprotos --grpc_python_out="$output" \
  --mypy_grpc_out=quiet:"$output" protos/iemas/v1/*_service.proto
