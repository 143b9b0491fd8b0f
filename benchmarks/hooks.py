#!/usr/bin/env python3
"""What hooks cost: a network without hooks against the same network with them, in interleaved rounds.

    benchmarks/hooks.py --kiln build/kiln --threads 1

Rows: statistics and stores of all 16 block outputs of ResNet-34 at 224, and Grad-CAM of resnet34_pets at 352 (forward,
activations and gradient of the body) against its forward run. The cost is the median over rounds of the ratio of the two
medians measured next to each other in time. Needs Python only.
"""

import argparse
import statistics
import subprocess

BLOCKS = [f"layer{stage + 1}.{block}" for stage, count in enumerate([3, 4, 6, 3]) for block in range(count)]
CASES = [
    ("stats of 16 blocks", "resnet34", [f"{b}:activation:stats" for b in BLOCKS], 1.03),
    ("store of 16 blocks", "resnet34", [f"{b}:activation:store" for b in BLOCKS], 1.05),
    ("Grad-CAM of the body", "resnet34_pets", ["body:activation:store", "body:gradient:store"], 3.2),
]


class Server:
    """`kiln bench --serve`: a line in, the median of some runs in milliseconds out."""

    def __init__(self, arguments, model, hooks):
        command = [arguments.kiln, "bench", f"{arguments.examples}/{model}.json", "--serve", "--rounds", str(arguments.runs),
                   "--threads", str(arguments.threads)]
        for hook in hooks:
            command += ["--hook", hook]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", default="build/kiln")
    parser.add_argument("--examples", default="examples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=7, help="runs in a round, whose median counts")
    arguments = parser.parse_args()
    print(f"{'case':24} {'without':>10} {'with':>10} {'ratio':>7}  range            limit")
    for name, model, hooks, limit in CASES:
        plain, hooked = Server(arguments, model, []), Server(arguments, model, hooks)
        pairs = []
        for number in range(arguments.rounds):
            if number % 2:
                a, b = plain.measure(), hooked.measure()
            else:
                b, a = hooked.measure(), plain.measure()
            pairs.append((a, b))
        plain.close()
        hooked.close()
        ratios = sorted(b / a for a, b in pairs)
        ratio = statistics.median(ratios)
        print(f"{name:24} {statistics.median(a for a, _ in pairs):7.3f} ms {statistics.median(b for _, b in pairs):7.3f} ms "
              f"{ratio:6.3f}x  {ratios[0]:.3f} to {ratios[-1]:.3f}  {limit:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
