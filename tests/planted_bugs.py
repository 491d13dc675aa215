"""Bugs that must each make a law fail: the laws are tested too.

A bug is a change to one line of the package, and the law that ought to notice. `python tests/planted_bugs.py [word]`
plants them one after the other in a copy and says which are noticed; `python dev.py test -m planted` does the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Bug(NamedTuple):
    """In file, `right` becomes `wrong`; then a test of `laws` whose name contains `law` must fail."""

    name: str
    file: str
    right: str
    wrong: str
    laws: str
    law: str


BUGS = [
    # randomness
    Bug("ambiguous path", "random.py", "[self.seed, *self.path]", '[self.seed, "".join(self.path)]', "random", "names"),
    Bug("counter ignored", "random.py", "counter=start // 4", "counter=0", "random", "entered"),
    Bug("biased integers", "random.py", "[words <= largest]", "[words <= words]", "random", "fair_words"),
    Bug("repeated places", "random.py", "np.sort(first)[:sparse]", ":sparse", "random", "distinct_places"),
    Bug("places not nested", "random.py", "np.sort(first)[:sparse]", "first[:sparse]", "random", "distinct_places"),
    Bug("one-sided tails", "random.py", "np.copysign(", "np.maximum(", "random", "quantiles"),
    Bug("one bit, two signs", "random.py", 'bitorder="little"', 'bitorder="big"', "random", "fair_bits"),
    # transforms
    Bug(
        "swapped adjoint",
        "transforms.py",
        "_IDCT.adjoint = _IDCT, _DCT",
        "_IDCT.adjoint = _DCT, _IDCT",
        "transform",
        "adj",
    ),
    Bug("first coefficient", "transforms.py", "y[..., 0] *= math.sqrt(0.5)", "pass", "transform", "scipy"),
    Bug("half precision inside", "transforms.py", "else x.float()", "else x", "transform", "half"),
    Bug("lazy conj", "transforms.py", "+1, y), n)", "-1, y).conj(), n)", "transform", "operator"),
    # offsets
    Bug("wrong normalisation", "offsets/dct.py", "self.gain / math.sqrt(q)", "self.gain", "offset", "truncated_orth"),
    Bug(
        "wrong length", "offsets/dct.py", "q, device = max(n_out, n_in)", "q, device = n_in", "offset", "truncated_orth"
    ),
    Bug(
        "wrong patch order",
        "patches.py",
        '"o (taps c) -> o c taps"',
        '"o (c taps) -> o c taps"',
        "offset",
        "patch",
    ),
    Bug("gain lost in linear", "offsets/dct.py", "(self.gain * dct(padded)", "(dct(padded)", "offset", "linear"),
    Bug("signs of another stream", "offsets/signed_dct.py", 'fold("signs")', 'fold("sign")', "offset", "signed"),
    Bug(
        "Hadamard scale", "offsets/hadamard.py", "math.sqrt(max(n_out, n_in))", "math.sqrt(n_in)", "offset", "hadamard"
    ),
    Bug("fan of a channel", "offsets/gaussian.py", "n_out * self.shape[2:].numel()", "n_out", "offset", "torchs"),
    Bug("uniform bound", "offsets/gaussian.py", "std * math.sqrt(3)", "std", "offset", "torchs"),
    Bug(
        "global generator",
        "offsets/gaussian.py",
        "n, dtype = math.prod(shape)",
        "torch.rand(1); n, dtype = math.prod(shape)",
        "offset",
        "global",
    ),
    Bug("weights shared", "offsets/pretrained.py", "like.detach().clone()", "like.detach()", "offset", "copy"),
    # embeddings
    Bug(
        "unsorted index",
        "embeddings/sparse.py",
        "from_numpy(places).sort().values",
        "from_numpy(places)",
        "embedding",
        "column",
    ),
    Bug("index forgotten", "fixed.py", "now.copy_(buffer)", "pass", "embedding", "leaves_the_meta"),
    Bug("not to scale", "embeddings/gaussian.py", ".mul_(of**-0.5)", "", "embedding", "lengths"),
    Bug(
        "one block again",
        "embeddings/gaussian.py",
        "count * dim, start * dim,",
        "count * dim, 0,",
        "embedding",
        "stream",
    ),
    Bug(
        "U held whole", "embeddings/gaussian.py", "return max(1, BLOCK // dim)", "return 1 << 30", "embedding", "block"
    ),
    Bug("no square", "embeddings/direction.py", "/ (d * d).sum()", "/ d.norm()", "embedding", "pseudo"),
    Bug(
        "summands swapped",
        "embeddings/direct_sum.py",
        "embedding in self.embeddings]",
        "embedding in self.embeddings][::-1]",
        "embedding",
        "adjoint",
    ),
    Bug(
        "scale forgotten",
        "embeddings/scaled.py",
        "self.scale * self.embedding.adjoint",
        "self.embedding.adjoint",
        "embedding",
        "adjoint",
    ),
    # the parametrization and its traps
    Bug(
        "d forgotten",
        "parametrization.py",
        "return self.offset() + self.embedding(theta)",
        "return self.embedding(theta)",
        "parametrization",
        "d_plus_u",
    ),
    Bug(
        "d not subtracted",
        "parametrization.py",
        "coordinates(weight - self.offset())",
        "coordinates(weight)",
        "parametrization",
        "nearest",
    ),
    Bug("stale gradient", "parametrization.py", "weight.grad = None", "pass", "traps", "gradient"),
    Bug("shared class", "parametrization.py", "type(module).__deepcopy__ = _deepcopy", "pass", "traps", "deepcopy"),
    Bug("frozen theta", "parametrization.py", "weight.requires_grad_(True)", "pass", "traps", "frozen"),
    Bug(
        "copy left parametrized",
        "parametrization.py",
        "parametrize.remove_parametrizations(",
        "id(",
        "parametrization",
        "materialize",
    ),
    # recipes and budgets
    Bug("names not folded in", "methods/recipe.py", "Key(seed).fold(q)", "Key(seed)", "recipes", "different_maps"),
    Bug("columns as they come", "recipes.py", ".sum(0).rsqrt()", ".sum(0).square().rsqrt()", "recipes", "unit_columns"),
    Bug("truncated budget", "methods/budgets.py", "base[i] += 1", "pass", "recipes", "exact"),
    # off the meta device
    Bug(
        "start forgotten", "initialize.py", "else like_it(start, theta)", "else blank(theta)", "initialize", "start_is"
    ),
    Bug("parents first", "initialize.py", "in reversed(unset)", "in unset", "initialize", "set_by_its_module"),
    Bug("any part for all", "initialize.py", "args[0].shape != sample.shape or ", "", "initialize", "nothing_sets"),
    # choosing and moving U
    Bug(
        "no mask in RigL",
        "methods/growth.py",
        "block[kept[first:last] - start] = -1",
        "pass",
        "methods_moving",
        "masks",
    ),
    Bug(
        "channels of another group",
        "kernels/weight_gradient.py",
        "lowest * channels : highest",
        "0 : highest",
        "weight_gradient",
        "convolution",
    ),
    Bug("one read of two", "methods/growth.py", "gradient + flat[start", "flat[start", "methods_moving", "layers_that"),
    Bug(
        "moments stay behind", "methods/moving.py", "(theta, theta.grad, *state)", "(theta,)", "methods_moving", "state"
    ),
    Bug(
        "grown from a neighbour",
        "methods/moving.py",
        "stays, per_entry[source], 0",
        "stays | True, per_entry[source], 0",
        "methods_moving",
        "zero",
    ),
    Bug(
        "statistics moved",
        "methods/saliency.py",
        "owner[name] = buffer.copy_(content)",
        "pass",
        "methods_saliency",
        "as_it_was",
    ),
    Bug("mode changed", "methods/saliency.py", "module.training = training", "pass", "methods_saliency", "as_it_was"),
    Bug(
        "SynFlow in float32",
        "methods/synflow.py",
        "tensor.abs().double()",
        "tensor.abs().float()",
        "methods_saliency",
        "conserves",
    ),
    Bug(
        "FORCE that never returns",
        "methods/prune.py",
        "returning=True)",
        "returning=False)",
        "methods_saliency",
        "force",
    ),
    Bug(
        "not rewound",
        "methods/lottery_ticket.py",
        "model = copy.deepcopy(self.start)",
        "model = self.start",
        "methods_lottery",
        "rewinds",
    ),
    # checkpoints
    Bug(
        "no fingerprint",
        "checkpoint.py",
        "if not abs(saved - now.value) <= now.tolerance",
        "if False",
        "checkpoint",
        "as_saved",
    ),
    Bug("no digest", "checkpoint.py", "if digest != _digest(tensors)", "if False", "checkpoint", "flipped"),
    Bug(
        "written in place",
        "checkpoint.py",
        'os.fdopen(descriptor, "wb")',
        'open(path, "wb")',
        "checkpoint",
        "unwritable",
    ),
    Bug(
        "buffers left out",
        "checkpoint.py",
        "(*model.named_parameters(), *model.named_buffers())",
        "model.named_parameters()",
        "checkpoint",
        "saved_one",
    ),
    Bug(
        "theta counted twice",
        "summary.py",
        "0 if id(theta) in thetas else theta.nbytes",
        "theta.nbytes",
        "summary",
        "shared",
    ),
    # products that never build w
    Bug(
        "wrong partner",
        "kernels/cpp/rows.h",
        "p->position[o ? q - o : 0]",
        "p->position[o]",
        "native_rows",
        "sanitizers",
    ),
    Bug("first row of T", "kernels/cpp/rows.h", "norm * 0.707106781186547524f", "norm", "native_rows", "sanitizers"),
    Bug(
        "last products lost",
        "kernels/cpp/rows.h",
        "j < count; j += R",
        "j + R <= count; j += R",
        "native_rows",
        "sanitizers",
    ),
    Bug(
        "one row too many", "kernels/cpp/rows.h", "row < rows ? data", "row <= rows ? data", "native_rows", "sanitizers"
    ),
    Bug(
        "twiddle of another step",
        "kernels/cpp/transforms.h",
        "int64_t(j) * s % length",
        "int64_t(j) % length",
        "native_rows",
        "sanitizers",
    ),
    Bug("random signs once", "embeddings/srht.py", "first * dim)).reshape", "0)).reshape", "srht", "random_signs"),
    Bug("spectrum not real", "embeddings/fourier_ft.py", "gain.where(back, -gain)", "-gain", "fourier", "real_part"),
    Bug(
        "gain forgotten",
        "normal_form.py",
        "part if gain == 1 else gain * part",
        "part",
        "structured",
        "time_and_memory",
    ),
    Bug(
        "alpha in place of d",
        "normal_form.py",
        "along if scale is None else scale + along",
        "along",
        "structured",
        "time_and_memory",
    ),
    Bug(
        "forward left bound",
        "parametrization.py",
        'vars(space.module).pop("forward", None)',
        "pass",
        "structured",
        "and_back",
    ),
    Bug("padding ignored", "kernels/geometry.py", "* dilation - padding", "* dilation", "kernels", "dense_product"),
    Bug(
        "scale once too often",
        "kernels/dense.py",
        "product.mul_(scale)",
        "product.mul_(scale * scale)",
        "kernels",
        "dense_product",
    ),
    Bug("stale bags", "kernels/sparse.py", "wanted = (index._version, ", "wanted = (", "kernels", "moves_is_followed"),
    Bug(
        "S turned as well",
        "normal_form.py",
        "values * self.signed.signs.to(values.dtype)[channels]",
        "values",
        "structured",
        "signed",
    ),
    Bug("signs of other groups", "normal_form.py", "signs.repeat(", "signs.repeat_interleave(", "structured", "signed"),
    Bug("batch axis kept", "structured.py", "else y.squeeze(0)", "else y", "structured", "time_and_memory"),
    # studies
    Bug(
        "hash without options",
        "study/spec/study.py",
        "found = asdict(self)",
        'found = {**asdict(self), "method": {"name": self.method.name}}',
        "runs",
        "every_field",
    ),
    Bug(
        "torn write",
        "study/results/disk.py",
        "temporary.replace(path)",
        "path.write_bytes(content)",
        "store",
        "crash_while",
    ),
    Bug(
        "checksum not looked at",
        "study/results/store.py",
        'record.get("sha256") != checksum(record)',
        "False",
        "store",
        "damage_is_named",
    ),
    Bug(
        "newer results overwritten",
        "study/results/store.py",
        'record["schema"] > SCHEMA',
        "False",
        "store",
        "newer_version",
    ),
    Bug(
        "lock for everyone",
        "study/results/store.py",
        "yield lock.is_locked",
        "yield True",
        "store",
        "held_by_one",
    ),
    Bug(
        "attempts not counted",
        "study/execution/execute.py",
        "attempts(previous) + 1",
        "attempts(previous) + 2",
        "runner",
        "tried_once_more",
    ),
    Bug(
        "finished trained again",
        "study/execution/execute.py",
        'previous is None or previous["status"] != "finished"',
        "True",
        "runner",
        "two_studies",
    ),
    Bug(
        "dead not buried",
        "study/execution/runner.py",
        "number=attempts(record) + 1",
        "number=attempts(record) + 2",
        "runner",
        "tried_once_more",
    ),
    Bug(
        "optimizer begun anew",
        "study/training/loop.py",
        "for name, state in states.items():",
        "for name, state in ():",
        "training",
        "resumed_run",
    ),
    Bug(
        "epoch done twice",
        "study/training/loop.py",
        'return int(saved["epochs"])',
        'return int(saved["epochs"]) - 1',
        "training",
        "resumed_run",
    ),
    Bug(
        "search begun anew",
        "study/training/loop.py",
        'search.load_state_dict(self.state.saved["search"])',
        "pass",
        "training",
        "resumed_run",
    ),
    Bug(
        "dropout not reseeded",
        "study/training/loop.py",
        "with seeded(self.team.key(key)):",
        "if True:",
        "training",
        "dropout",
    ),
    Bug(
        "held apart and trained on",
        "study/training/run.py",
        "order[apart:].sort().values",
        "order.sort().values",
        "training",
        "never_trained_on",
    ),
    Bug(
        "schedule left out",
        "study/training/loop.py",
        "parts.schedule.step()",
        "pass",
        "training",
        "schedule_and_the_scaling",
    ),
    Bug(
        "key of a file ignored",
        "study/spec/files.py",
        "require_known(table, [field",
        "(lambda *_: None)(table, [field",
        "files",
        "not_a_study",
    ),
]


def laws(root: Path, bug: Bug) -> Path:
    """The file of the bug's law."""
    (file,) = root.glob(f"tests/**/test_{bug.laws}*.py")
    return file


def noticed(bug: Bug) -> tuple[bool, str]:
    """Plant the bug in a copy of the package and run its law there: did a test fail? And what pytest printed."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("subspace", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(folder, "subspace", bug.file)
        file.write_text(file.read_text().replace(bug.right, bug.wrong))
        options = ["-qx", "-p", "no:cacheprovider", "--hypothesis-profile=once", "-k", bug.law]
        command = [sys.executable, "-m", "pytest", *options, laws(Path(folder), bug)]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    # 1: a test failed; a broken import, or no test collected, is another status
    return run.returncode == 1, run.stdout + run.stderr


def main(word: str = "") -> int:
    """Plant every bug whose name contains `word`; the exit status is the number that nothing noticed."""
    missed = 0
    for bug in BUGS:
        if word in bug.name:
            found, output = noticed(bug)
            missed += not found
            print(f"noticed  {bug.name}" if found else f"MISSED   {bug.name}\n{output[-1500:]}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
