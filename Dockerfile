# docker build --target serving -t wsss-serving .
# docker build --target trainer -t wsss-trainer .
# Both run with --read-only --tmpfs /tmp; docs/install.md, "Containers", has the docs.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS base
ENV HOME=/tmp \
    PATH=/opt/wsss/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin wsss

FROM base AS wheel
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY protos protos
COPY serving serving
COPY trainer trainer
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM base AS serving-environment
COPY constraints.txt /
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/wsss \
    && /opt/wsss/bin/pip install -c /constraints.txt "$(echo /wheels/wsss-*.whl)[serve,http]" \
    && /opt/wsss/bin/pip uninstall --yes pip setuptools

FROM base AS trainer-environment
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/wsss \
    && /opt/wsss/bin/pip install -c /constraints.txt "$(echo /wheels/wsss-*.whl)[train]"

FROM base AS trainer
COPY --from=trainer-environment /opt/wsss /opt/wsss
ENV WSSS_CACHE=/work/.cache
WORKDIR /work
RUN chown wsss:wsss /work
USER 10001:10001
HEALTHCHECK --interval=5m --timeout=30s CMD ["wsss-trainer", "--help"]
ENTRYPOINT ["wsss-trainer"]
CMD ["--help"]

FROM base AS serving
COPY --from=serving-environment /opt/wsss /opt/wsss
USER 10001:10001
EXPOSE 8500 8080
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["wsss-serving", "health"]
ENTRYPOINT ["wsss-serving"]
# Insecure: the network that it listens on is the container's own. Publish the ports on the machine itself
# (-p 127.0.0.1:8500:8500), or give TLS files and tokens in place of --insecure. With TLS, WSSS_TLS_CA names the
# certificate that the health check trusts.
CMD ["serve", "--repository", "/models", "--host", "0.0.0.0", "--port", "8500", "--http-port", "8080", "--insecure"]
