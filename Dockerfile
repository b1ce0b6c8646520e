# hermes-quant on the CPU. The working folder is /data:
#   docker build -t hermes-quant .
#   docker run --rm -v "$PWD:/data" hermes-quant release build release.yaml --out dist
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake git \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python -m venv /opt/hermes-quant \
    && /opt/hermes-quant/bin/pip install --no-cache-dir -c /source/constraints.txt \
       --extra-index-url https://download.pytorch.org/whl/cpu "/source[release]"

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home quantizer
COPY --from=build /opt/hermes-quant /opt/hermes-quant
ENV PATH=/opt/hermes-quant/bin:$PATH OMP_WAIT_POLICY=PASSIVE
USER quantizer
WORKDIR /data
ENTRYPOINT ["hermes-quant"]
CMD ["--help"]
