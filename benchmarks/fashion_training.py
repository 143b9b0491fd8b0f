#!/usr/bin/env python3
"""Times a whole training run on Fashion-MNIST, `kiln train` against PyTorch, as two commands that take turns.

    benchmarks/fashion_training.py KILN [--data DIR] [--threads 2] [--rounds 3] [--epochs 5] [--seed 0]

Both sides: examples/fashion.json (simple_cnn10_bn), PyTorch's default initialisation, Adam with decoupled weight
decay of 0.01 but for biases and norms (eps 1e-5, beta2 0.99) under a one-cycle schedule to 0.1 (cosine, 25 % up from
1/25, down to 1/1e5, beta1 0.95 to 0.85 and back), batches of 512 in a new order every epoch with the incomplete last
one, evaluation of all 10,000 test pictures after every epoch. A command's time is that from its start to its end: it
loads its libraries, reads and unpacks the gzipped IDX files, compiles (Kiln's code comes from its cache in all rounds
but a first one; --cold switches that off), trains and measures.

PyTorch runs eagerly, at its best here: the normalised pictures are one tensor in memory, a batch is one gather, there
is no DataLoader, and it trains in the memory format (contiguous or channels_last) that is faster on this machine,
found before the rounds; pass --format to choose it. The two differ in their random numbers only, so accuracies are
compared over the rounds, whose seeds are SEED, SEED + 1, ...: each run must pass --floor (0.89), and the means must
be within --agree (0.01). Only then are the times reported: of every round, the median of each side, and the ratio
round by round."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

DATA = "/usr/share/datasets/fashion-mnist"
EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples", "fashion.json")
MEAN, DEVIATION = 0.286, 0.353  # what examples/fashion.json describes
RATE, DIV, DIV_FINAL, RISE, HIGH, LOW, DECAY = 0.1, 25, 1e5, 0.25, 0.95, 0.85, 0.01
BATCH = 512


# --- PyTorch's side, a process of its own ---------------------------------------------------------------------------


def read_idx(path, header):
    import gzip

    import numpy

    with gzip.open(path) as file:
        return numpy.frombuffer(file.read(), numpy.uint8, offset=header)


def torch_data(folder, part):
    import torch

    images = read_idx(f"{folder}/{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = read_idx(f"{folder}/{part}-labels-idx1-ubyte.gz", 8)
    images = torch.from_numpy(images.copy()).float().div_(255).sub_(MEAN).div_(DEVIATION)
    return images, torch.from_numpy(labels.copy()).long()


def torch_model():
    from torch import nn

    def stage(inputs, outputs, kernel, relu=True):
        layers = [nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2), nn.BatchNorm2d(outputs)]
        return nn.Sequential(*layers + ([nn.ReLU(inplace=True)] if relu else []))

    return nn.Sequential(stage(1, 8, 5), stage(8, 16, 3), stage(16, 32, 3), stage(32, 64, 3), stage(64, 10, 3, False),
                         nn.Flatten())


def torch_measure(model, images, labels):
    import torch

    model.eval()
    with torch.inference_mode():
        correct = sum(int((model(images[i:i + BATCH]).argmax(1) == labels[i:i + BATCH]).sum())
                      for i in range(0, len(labels), BATCH))
    model.train()
    return correct / len(labels)


def torch_main(arguments):
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    layout = torch.channels_last if arguments.format == "channels_last" else torch.contiguous_format
    images, labels = torch_data(arguments.data, "train")
    test_images, test_labels = torch_data(arguments.data, "t10k")
    model = torch_model().to(memory_format=layout)
    batches = -(-len(labels) // BATCH)
    decayed = [value for value in model.parameters() if value.dim() > 1]
    others = [value for value in model.parameters() if value.dim() == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, RATE, betas=(HIGH, 0.99), eps=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, batches * arguments.epochs, pct_start=RISE,
                                                   div_factor=DIV, final_div_factor=DIV_FINAL / DIV, base_momentum=LOW,
                                                   max_momentum=HIGH)
    accuracy = 0
    for _ in range(arguments.epochs):
        order = torch.randperm(len(labels))
        for number in range(batches):
            chosen = order[number * BATCH:(number + 1) * BATCH]
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(model(images[chosen].contiguous(memory_format=layout)), labels[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = torch_measure(model, test_images, test_labels)
    print(json.dumps({"accuracy": accuracy}))


# --- the comparison -------------------------------------------------------------------------------------------------


def torch_command(arguments, seed, epochs, layout):
    return [sys.executable, os.path.abspath(__file__), "--torch", "--data", arguments.data, "--threads",
            str(arguments.threads), "--epochs", str(epochs), "--seed", str(seed), "--format", layout]


def kiln_command(arguments, seed):
    return [arguments.kiln, "train", EXAMPLE, "--data", arguments.data, "--epochs", str(arguments.epochs), "--batch",
            str(BATCH), "--lr", str(RATE), "--one-cycle", "--threads", str(arguments.threads),
            "--seed", str(seed), "--keep-last", "--json"]


def timed(command, environment=None):
    """Seconds of the whole command, and what it printed as JSON."""
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return time.perf_counter() - begin, json.loads(done.stdout)


def faster_format(arguments):
    seconds = {layout: min(timed(torch_command(arguments, 0, 1, layout))[0] for _ in range(2))
               for layout in ("contiguous", "channels_last")}
    print("PyTorch, one epoch: " + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    return min(seconds, key=seconds.get)


def compare(arguments):
    environment = dict(os.environ)
    if arguments.cold:
        environment["KILN_CACHE"] = "off"
    layout = arguments.format or faster_format(arguments)
    rounds = []
    for number in range(arguments.rounds):
        seed = arguments.seed + number
        theirs, their_result = timed(torch_command(arguments, seed, arguments.epochs, layout))
        ours, our_result = timed(kiln_command(arguments, seed), environment)
        accuracies = their_result["accuracy"], our_result["epochs"][-1]["accuracy"]
        rounds.append((theirs, ours, *accuracies))
        print(f"seed {seed}: PyTorch {theirs:.2f} s, accuracy {accuracies[0]:.4f}; "
              f"Kiln {ours:.2f} s, accuracy {accuracies[1]:.4f}; {theirs / ours:.2f} times as fast", flush=True)
    means = [statistics.mean(row[k] for row in rounds) for k in (2, 3)]
    low = min(min(row[2:]) for row in rounds)
    if low < arguments.floor or abs(means[0] - means[1]) > arguments.agree:
        sys.exit(f"the runs are not comparable: mean accuracies {means[0]:.4f} and {means[1]:.4f}, lowest {low:.4f}")
    theirs, ours = (statistics.median(row[k] for row in rounds) for k in (0, 1))
    ratio = statistics.median(row[0] / row[1] for row in rounds)
    print(f"{arguments.epochs} epochs, {arguments.threads} threads, {'cold' if arguments.cold else 'warm'}: "
          f"PyTorch ({layout}) {theirs:.2f} s, Kiln {ours:.2f} s, {ratio:.2f} times as fast (medians); "
          f"mean accuracies {means[0]:.4f} and {means[1]:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln", nargs="?")
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=("contiguous", "channels_last"))
    parser.add_argument("--cold", action="store_true", help="Kiln without its cache of compiled code")
    parser.add_argument("--floor", type=float, default=0.89)
    parser.add_argument("--agree", type=float, default=0.01)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch:
        torch_main(arguments)
    elif arguments.kiln is None:
        parser.error("which kiln?")
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
