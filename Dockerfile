# Every stage in a container: docker run --gpus all -v "$PWD/outputs:/app/outputs" rlhf_recipes demo
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY LICENSE Makefile README.md pyproject.toml requirements.txt ./
COPY rlhf_recipes rlhf_recipes
RUN make install PIP_NO_CACHE_DIR=1

COPY accelerate_configs accelerate_configs
COPY recipes recipes

ENTRYPOINT ["make"]
CMD ["help"]
