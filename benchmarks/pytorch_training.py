#!/usr/bin/env python3
"""Times a training step, Kiln against PyTorch, interleaved on the same machine.

    benchmarks/pytorch_training.py KILN [--models small,resnet18] [--batches 64,512] [--threads 1,2] [--rounds R]

PyTorch runs eagerly, in its default mode, with SGD (momentum 0.9) and its thread count set. Both sides start from the
same weights and see the same batch; the losses of the first five steps have to agree before anything is timed. Then the
two take turns: a block of steps of one, a block of the other. Printed: the median over all blocks' medians and the ratio
of each pair of neighbouring blocks' (median), which a change of the machine's speed does not touch; on a machine that
others use too, that of the fastest blocks says more.

Kiln is driven through `kiln bench --train --serve`. Models: examples/simple_cnn10_bn.json on 1x28x28 images, and
examples/resnet18.json on 3x64x64 (batch 32)."""
import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import torch
from torch import nn

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples")
LEARNING_RATE, MOMENTUM, CHECKED_STEPS = 0.003, 0.9, 5


def small():
    def stage(inputs, outputs, kernel, relu=True):
        layers = [nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2), nn.BatchNorm2d(outputs)]
        return nn.Sequential(*layers + ([nn.ReLU(inplace=True)] if relu else []))

    return nn.Sequential(stage(1, 8, 5), stage(8, 16, 3), stage(16, 32, 3), stage(32, 64, 3), stage(64, 10, 3, False),
                         nn.Flatten())


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + shortcut)


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for number, width in enumerate((64, 128, 256, 512), 1):
            stride = 1 if number == 1 else 2
            setattr(self, f"layer{number}", nn.Sequential(Block(inputs, width, stride), Block(width, width, 1)))
            inputs = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


# name -> description, module, image, classes, batches
MODELS = {
    "small": ("simple_cnn10_bn.json", small, (1, 28, 28), 10, None),
    "resnet18": ("resnet18.json", ResNet18, (3, 64, 64), 1000, [32]),
}


def write_safetensors(path, tensors):
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    head, offset, blobs = {}, 0, []
    for name, tensor in tensors.items():
        blob = tensor.detach().contiguous().numpy().tobytes()
        head[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


class Peer:
    """PyTorch's side: `run` takes steps and gives their median time in ms and the first loss."""

    def __init__(self, module, images, target, threads):
        torch.set_num_threads(threads)
        self.module, self.images, self.target = module.train(), images, target
        self.optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        self.loss = nn.CrossEntropyLoss()

    def run(self, steps):
        times, losses = [], []
        for _ in range(steps):
            started = time.perf_counter()
            self.optimizer.zero_grad()
            loss = self.loss(self.module(self.images), self.target)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times), losses[0]


class Kiln:
    def __init__(self, program, model, folder, image, batch, threads, steps):
        shape = "image=N," + ",".join(map(str, image))
        command = [program, "bench", model, "--train", "--serve", "--rounds", str(steps), "--batch", str(batch),
                   "--threads", str(threads), "--weights", os.path.join(folder, "weights.safetensors"),
                   "--inputs", os.path.join(folder, "inputs.safetensors"), "--lr", str(LEARNING_RATE),
                   "--momentum", str(MOMENTUM), "--shape", shape, "--seconds", "0.5"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            sys.exit("kiln bench ended: see its message above")
        return float(answer[0]), float(answer[1])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def start(program, name, batch, threads, folder, steps, seed=1):
    description, build, image, classes, _ = MODELS[name]
    torch.manual_seed(seed)
    module = build()
    images, target = torch.randn(batch, *image), torch.randint(0, classes, (batch,))
    weights = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    write_safetensors(os.path.join(folder, "weights.safetensors"), weights)
    write_safetensors(os.path.join(folder, "inputs.safetensors"), {"image": images, "target": target})
    peer = Peer(module, images, target, threads)
    return peer, Kiln(program, os.path.join(EXAMPLES, description), folder, image, batch, threads, steps)


def check(program, name, batch, threads, folder):
    peer, kiln = start(program, name, batch, threads, folder, 1)
    for step in range(CHECKED_STEPS):
        expected, found = peer.run(1)[1], kiln.run()[1]
        if not abs(found - expected) <= 1e-3 * max(1, abs(expected)):
            sys.exit(f"{name}, batch {batch}, step {step}: Kiln's loss is {found}, PyTorch's {expected}")
    kiln.close()
    return expected, found


def compare(program, name, batch, threads, rounds, seconds):
    with tempfile.TemporaryDirectory() as folder:
        losses = check(program, name, batch, threads, folder)
        trial = start(program, name, batch, threads, folder, 1)
        once = max(trial[0].run(3)[0], 0.05)
        trial[1].close()
        steps = max(3, min(200, int(1e3 * seconds / rounds / once)))
        peer, kiln = start(program, name, batch, threads, folder, steps)
        peer.run(3)
        pairs = [(peer.run(steps)[0], kiln.run()[0]) for _ in range(rounds)]
        kiln.close()
    theirs, ours = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(a / b for a, b in pairs)
    best = min(a for a, _ in pairs) / min(b for _, b in pairs)
    print(f"{name:10} batch {batch:4}  threads {threads}  PyTorch {theirs:9.3f} ms  Kiln {ours:9.3f} ms  "
          f"ratio {ratio:5.2f}, of the fastest blocks {best:5.2f}  (losses of step {CHECKED_STEPS}: {losses[0]:.6f}, {losses[1]:.6f})", flush=True)


def numbers(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln")
    parser.add_argument("--models", default="small,resnet18")
    parser.add_argument("--batches", type=numbers, default=[64, 512], help="of the small network")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each side")
    parser.add_argument("--seconds", type=float, default=4, help="of PyTorch's steps, per line")
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}")
    for name in options.models.split(","):
        for batch in MODELS[name][4] or options.batches:
            for threads in options.threads:
                compare(options.kiln, name, batch, threads, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
