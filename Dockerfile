# The zoo with everything its tests need. `docker compose up -d` builds and starts it; see compose.yaml.
FROM python:3.11.13-slim-bookworm

# torch.compile builds its kernels with g++, and decoding on a CPU its step with gcc; benchmarks store the commit, which they read with git.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*

# Not root, but your own user id (`id -u`), so that files written to the mounted folder belong to you.
ARG UID=1000
RUN useradd --create-home --uid ${UID} zoo && install --directory --owner zoo /zoo /home/zoo/.cache
WORKDIR /zoo

# torch in a separate layer, because it is large and rarely changes. Its CPU wheels are the default;
# https://pypi.org/simple has those for CUDA. --no-deps: its dependencies are installed below at the pinned versions.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt .
RUN pip install --no-cache-dir --no-deps --index-url ${TORCH_INDEX} --constraint constraints.txt torch

# The dependencies in a layer that an edit of the code does not rebuild: only these files and constraints.txt change it.
COPY setup.cfg pyproject.toml ./
RUN install --directory --owner zoo zoo && touch README.md LICENSE \
    && pip install --no-cache-dir --constraint constraints.txt --editable '.[dev]'

# Editable, so that the mounted repository is used. Links in zoo/ to folders at the top stay links.
COPY --chown=zoo . .
RUN pip install --no-cache-dir --no-deps --editable .

USER zoo
CMD ["bash"]
