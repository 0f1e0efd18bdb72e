# The zoo with everything its tests need. `docker compose up -d` builds and starts it; see compose.yaml.
FROM python:3.11.13-slim-bookworm

# torch.compile builds its kernels with g++; benchmarks note the commit they measured, which git tells.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*

# Not root, and with your own number (`id -u`), so that what runs in the mounted folder stays yours.
ARG UID=1000
RUN useradd --create-home --uid ${UID} zoo && install --directory --owner zoo /zoo /home/zoo/.cache
WORKDIR /zoo

# torch in a layer of its own, because it is large and seldom changes. Its CPU wheels are the default;
# https://pypi.org/simple has those for CUDA. --no-deps: what torch needs comes from PyPI, below, at the pinned versions.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt .
RUN pip install --no-cache-dir --no-deps --index-url ${TORCH_INDEX} --constraint constraints.txt torch

# Editable, so that the mounted repository is what runs.
COPY --chown=zoo . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[dev]'

USER zoo
CMD ["bash"]
