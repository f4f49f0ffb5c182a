# The project with PyTorch and CUDA; docs/learn/systems.md has the commands.
#
#   docker build -t segmentation .
#   docker build --build-arg INDEX=https://download.pytorch.org/whl/cpu -t segmentation-cpu .
FROM python:3.12-slim-bookworm

# Another index than PyPI for PyTorch alone, such as that of its builds without CUDA.
ARG INDEX=https://pypi.org/simple
ARG UID=1000

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --create-home --uid "$UID" user \
    && install --directory --owner=user /work /work/exp
WORKDIR /work

# What changes seldom comes first: a change of the code does not install PyTorch again.
COPY requirements.txt ./
RUN grep -E "^torch(vision)?==" requirements.txt > torch.txt \
    && python -m pip install --index-url "$INDEX" -r torch.txt \
    && python -m pip install -r requirements.txt

COPY --chown=user . .
RUN python -m pip install --no-deps --editable .

USER $UID
CMD ["sh", "tool/quickstart.sh"]
