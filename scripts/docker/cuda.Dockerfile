# The service on an NVIDIA GPU; the host needs the NVIDIA container toolkit. From the root of a checkout:
#   docker build -f scripts/docker/cuda.Dockerfile -t musetalk-enhance .
#   docker run --rm --gpus all -p 127.0.0.1:7860:7860 -e MUSETALK_ENHANCE_TOKEN -v enhance:/data musetalk-enhance
FROM python:3.12-slim

# libgl and glib for opencv-python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY musetalk_enhance musetalk_enhance
RUN pip install --no-cache-dir torch torchvision \
    && pip install --no-cache-dir ".[serve,onnx,demo,report]"

RUN useradd --create-home --uid 1000 enhance && mkdir /data && chown enhance /data
USER enhance
WORKDIR /data
ENV MUSETALK_ENHANCE_CACHE=/data/weights
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/ready')"
# the container's own address is not this machine's: MUSETALK_ENHANCE_TOKEN must be set
ENTRYPOINT ["musetalk-enhance", "serve", "--host", "0.0.0.0", "--device", "cuda", "--data-dir", "/data/service"]
