# Every stage in a container; make's targets are its commands:
#   docker build --tag rlhf_recipes .
#   docker run --gpus all -v rlhf-outputs:/app/outputs -v rlhf-cache:/cache rlhf_recipes demo
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 recipes \
    && mkdir -p /app/outputs /cache \
    && chown -R recipes /app /cache

# No root from here on. A new volume takes the owner of the folder that it covers.
USER recipes
WORKDIR /app
ENV HF_HOME=/cache

# What is installed changes less often than the rest, and is kept between builds.
COPY --chown=recipes LICENSE Makefile README.md pyproject.toml requirements.txt requirements-dev.txt ./
COPY --chown=recipes rlhf_recipes/__init__.py rlhf_recipes/__init__.py
RUN PIP_NO_CACHE_DIR=1 make install .venv/.tools-installed

COPY --chown=recipes . .

VOLUME ["/app/outputs", "/cache"]
ENTRYPOINT ["make"]
CMD ["help"]
