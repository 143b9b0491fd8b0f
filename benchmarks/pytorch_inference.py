#!/usr/bin/env python3
"""Times inference, Kiln against PyTorch, interleaved on the same machine.

    benchmarks/pytorch_inference.py KILN [--models resnet34,resnet50,small] [--batches 1,16] [--threads 1,2] [--rounds R]

PyTorch runs the model in evaluation mode, traced, frozen and through optimize_for_inference, where oneDNN computes the
convolutions, with images in its default order or channels last, whichever is faster. Both sides have the same weights
and see the same images; their outputs have to agree before anything is timed. Then the two take turns: a block of runs
of one, a block of the other. Printed: the median over all blocks' medians, the median of the ratios of neighbouring
blocks, which a change of the machine's speed does not touch, and the ratio of the fastest blocks.

Needs PyTorch only: on Debian, /usr/bin/python3 with python3-torch."""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch import nn

from pytorch_training import Block, EXAMPLES, numbers, small, write_safetensors

RELATIVE_ERROR = 1e-4


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet(nn.Module):
    def __init__(self, block, expansion, depths):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for number, depth in enumerate(depths, 1):
            width, blocks = 32 << number, []
            for i in range(depth):
                blocks.append(block(inputs, width, 2 if i == 0 and number > 1 else 1))
                inputs = expansion * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


# name -> description, module, image, batches instead of --batches
MODELS = {
    "resnet34": ("resnet34.json", lambda: ResNet(Block, 1, (3, 4, 6, 3)), (3, 224, 224), None),
    "resnet50": ("resnet50.json", lambda: ResNet(Bottleneck, 4, (3, 4, 6, 3)), (3, 224, 224), None),
    "small": ("simple_cnn10_bn.json", small, (1, 28, 28), [1, 64]),
}


def settle_statistics(module):
    """Running statistics unlike those of a new network, so that a batch norm left out would be noticed; scales small
    enough for activations to stay of order one through all residual sums."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
            nn.init.uniform_(layer.weight, 0.4, 0.6)
            nn.init.uniform_(layer.bias, -0.1, 0.1)


class Peer:
    """PyTorch's side: one of its two orders of images."""

    def __init__(self, module, images, order):
        self.images = images.contiguous(memory_format=order)
        with torch.no_grad():
            traced = torch.jit.trace(module.to(memory_format=order), self.images)
            self.run_once = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
            for _ in range(3):
                self.result = self.run_once(self.images)

    def run(self, runs):
        times = []
        with torch.no_grad():
            for _ in range(runs):
                started = time.perf_counter()
                self.run_once(self.images)
                times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times)


class Kiln:
    def __init__(self, program, arguments, runs):
        command = [program, "bench", *arguments, "--serve", "--rounds", str(runs)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(self):
        self.process.stdin.write("run\n")
        line = self.process.stdout.readline()
        if not line:
            sys.exit("kiln bench ended: see its message above")
        return float(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def read_output(path, shape):
    """The only tensor of a file of outputs."""
    with open(path, "rb") as file:
        data = file.read()
    size = 4 * shape[0] * shape[1]
    return torch.frombuffer(bytearray(data[-size:]), dtype=torch.float32).reshape(shape)


def check(program, arguments, images, expected, folder):
    inputs, outputs = os.path.join(folder, "inputs.safetensors"), os.path.join(folder, "outputs.safetensors")
    write_safetensors(inputs, {"image": images})
    subprocess.run([program, "run", *arguments, "--inputs", inputs, "--outputs", outputs, "--top", "0"], check=True,
                   stdout=subprocess.DEVNULL)
    found = read_output(outputs, tuple(expected.shape))
    error = float((found - expected).norm() / expected.norm())
    if not error <= RELATIVE_ERROR:
        sys.exit(f"the outputs differ: relative L2 {error:.3g}, expected at most {RELATIVE_ERROR:g}")
    return error


def compare(program, name, batch, threads, rounds, seconds):
    description, build, image, _ = MODELS[name]
    torch.manual_seed(1)
    torch.set_num_threads(threads)
    module = build().eval()
    settle_statistics(module)
    images = torch.randn(batch, *image)
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "weights.safetensors")
        write_safetensors(weights, {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")})
        with torch.no_grad():
            expected = module(images)
        arguments = [os.path.join(EXAMPLES, description), "--weights", weights, "--batch", str(batch), "--threads", str(threads)]
        error = check(program, arguments, images, expected, folder)
        peers = {label: Peer(module, images, order)
                 for label, order in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last))}
        for label, candidate in peers.items():
            difference = float((candidate.result - expected).norm() / expected.norm())
            if not difference <= RELATIVE_ERROR:
                sys.exit(f"PyTorch's own results differ in {label}: relative L2 {difference:.3g}")
        trials = {label: min(candidate.run(2) for _ in range(3)) for label, candidate in peers.items()}
        order = min(trials, key=trials.get)
        runs = max(2, min(500, int(1e3 * seconds / rounds / max(trials[order], 1e-3))))
        kiln = Kiln(program, arguments, runs)
        kiln.run()
        pairs = [(peers[order].run(runs), kiln.run()) for _ in range(rounds)]
        kiln.close()
    theirs, ours = (statistics.median(column) for column in zip(*pairs))
    ratios = sorted(a / b for a, b in pairs)
    best = min(a for a, _ in pairs) / min(b for _, b in pairs)
    print(f"{name:9} batch {batch:3}  threads {threads}  PyTorch ({order}) {theirs:9.3f} ms  Kiln {ours:9.3f} ms  "
          f"ratio {statistics.median(ratios):5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), of the fastest blocks {best:5.2f}  "
          f"(relative L2 {error:.2g})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln")
    parser.add_argument("--models", default="resnet34,resnet50,small")
    parser.add_argument("--batches", type=numbers, default=[1, 16], help="of the ResNets")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each side")
    parser.add_argument("--seconds", type=float, default=4, help="of PyTorch's runs, per line")
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}")
    for name in options.models.split(","):
        for batch in MODELS[name][3] or options.batches:
            for threads in options.threads:
                compare(options.kiln, name, batch, threads, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
