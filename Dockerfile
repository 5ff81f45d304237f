FROM python:3.12-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/enginehouse
ENV PATH=/opt/enginehouse/bin:$PATH
# One library for each instruction set, the best of which is chosen where the container runs.
COPY runtimes/engines/llamacpp/llamacpp.cmake .
RUN CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON \
        -DCMAKE_INSTALL_BINDIR=llama_cpp/lib -DCMAKE_PROJECT_llama.cpp_INCLUDE=/source/llamacpp.cmake" \
    SKBUILD_WHEEL_EXCLUDE="lib/**;include/**" \
    pip install --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
# "all" adds the other engines and what converts models for them; on a machine without a GPU, give PyTorch's own CPU
# index as PIP_EXTRA_INDEX_URL.
ARG ENGINES=llamacpp
ARG PIP_EXTRA_INDEX_URL=
COPY requirements requirements
RUN pip install -r requirements/serve.txt \
    && if [ "$ENGINES" = all ]; then pip install -r requirements/torch.txt -r requirements/engines.txt; fi
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY config config
COPY optimize optimize
COPY runtimes runtimes
COPY server server
RUN pip install --no-deps . \
    && python -m compileall -q /opt/enginehouse/lib

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 enginehouse \
    && mkdir /cache /config \
    && chown enginehouse /cache
COPY --from=build /opt/enginehouse /opt/enginehouse
# A container is reached from outside itself or not at all: what may reach it is said where its port is published.
ENV PATH=/opt/enginehouse/bin:$PATH \
    ENGINEHOUSE_HOST=0.0.0.0 \
    ENGINEHOUSE_ALLOW_OPEN=true \
    ENGINEHOUSE_CACHE_DIR=/cache \
    HF_HOME=/cache/hub
USER 10001
WORKDIR /config
VOLUME ["/config", "/cache"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["enginehouse", "health"]
ENTRYPOINT ["enginehouse"]
CMD ["serve"]
