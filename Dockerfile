# docker build -t distill3d .                                       with the CUDA libraries of PyTorch's wheels
# docker build --build-arg TORCH_BACKEND=cpu -t distill3d:cpu .     without them, a quarter of the size
# docker run --gpus all -v "$PWD":/work distill3d doctor
FROM python:3.11-slim

ARG TORCH_BACKEND=""

RUN pip install --no-cache-dir uv==0.13.9

WORKDIR /opt/distill3d
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY distill3d distill3d
RUN uv pip install --system --no-cache --constraint constraints.txt \
    ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} '.[export]' \
    && useradd --create-home --uid 1000 user

USER 1000
WORKDIR /work
ENTRYPOINT ["distill3d"]
CMD ["--help"]
