#!/usr/bin/env bash
# Builds the worker's image and, with --push, sends it to its registry.
#   serverless/build.sh registry.example/me/multitalk:0.1.0 [--push]
set -euo pipefail
cd "$(dirname "$0")/.."
image=${1:?name the image: serverless/build.sh IMAGE [--push]}
if [ -n "$(git status --porcelain)" ]; then
    echo "build: there are changes that are not committed, so no commit would name what is in the image; commit them first" >&2
    exit 1
fi
# what git knows and nothing else goes into the image
git archive HEAD | docker build --platform linux/amd64 --file serverless/Dockerfile --build-arg "COMMIT=$(git rev-parse HEAD)" --tag "$image" -
if [ "${2:-}" = --push ]; then
    docker push "$image"
fi
