# The one image of all services: python -m venv with pinned dependencies and our own wheel, on the plain base image.
# What only builds stays in the first two stages.
FROM python:3.13-slim-bookworm AS wheel
WORKDIR /build
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md ./
COPY chronicle chronicle
COPY command command
COPY query query
COPY projector projector
COPY publisher publisher
COPY alembic alembic
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.13-slim-bookworm AS environment
COPY requirements/service.txt requirements/
RUN python -m venv --without-pip /opt/chronicle \
    && pip --python /opt/chronicle/bin/python install --no-cache-dir --only-binary :all: --require-hashes -r requirements/service.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/chronicle/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.13-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin chronicle \
    && install -d -o chronicle -g chronicle /rejected
COPY --from=environment /opt/chronicle /opt/chronicle
ENV PATH=/opt/chronicle/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /rejected
STOPSIGNAL SIGTERM
ENTRYPOINT ["chronicle"]
CMD ["--help"]
