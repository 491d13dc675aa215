"""Bugs that must each make a law fail: the laws are tested too.

A bug is a change to one line of the package, and the law that ought to notice. `python -m pytest tests/mutants` plants
them one after the other in a copy of the package, which takes some minutes: it is no part of the test command. One
whose line has changed "cannot be planted": write it anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


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
    Bug(
        "ambiguous path",
        "_base/key.py",
        "[self.seed, *self.path]",
        '[self.seed, "".join(self.path)]',
        "random",
        "names",
    ),
    Bug("counter ignored", "_base/key.py", "counter=start // 4", "counter=0", "random", "entered"),
    Bug("biased integers", "_base/key.py", "[words <= largest]", "[words <= words]", "random", "fair_words"),
    Bug("repeated places", "_base/key.py", "np.sort(first)[:sparse]", ":sparse", "random", "distinct_places"),
    Bug("places not nested", "_base/key.py", "np.sort(first)[:sparse]", "first[:sparse]", "random", "distinct_places"),
    Bug("one-sided tails", "_base/key.py", "np.copysign(", "np.maximum(", "random", "quantiles"),
    Bug("one bit, two signs", "_base/key.py", 'bitorder="little"', 'bitorder="big"', "random", "fair_bits"),
    # transforms
    Bug(
        "swapped adjoint",
        "_base/transforms.py",
        "_IDCT.adjoint = _IDCT, _DCT",
        "_IDCT.adjoint = _DCT, _IDCT",
        "transform",
        "adj",
    ),
    Bug("first coefficient", "_base/transforms.py", "y[..., 0] *= math.sqrt(0.5)", "pass", "transform", "scipy"),
    Bug("half precision inside", "_base/transforms.py", "else x.float()", "else x", "transform", "half"),
    Bug("lazy conj", "_base/transforms.py", "+1, y), n)", "-1, y).conj(), n)", "transform", "operator"),
    # spaces: offsets below n log n, frames, bases, coefficients
    Bug("Haar's rest lost", "_base/transforms.py", "x[..., n - n % 2 :]], -1)", "x[..., n:]], -1)", "offset", "haar"),
    Bug("blocks not shuffled", "offsets/block_hadamard.py", "wide[..., self.order]", "wide", "offset", "block_trans"),
    Bug(
        "unequal share", "offsets/signed_permutation.py", ".double().rsqrt()", ".double() ** -1", "offset", "semi_orth"
    ),
    Bug(
        "unbalanced",
        "_base/balanced.py",
        "np.tile(np.arange(k), n // k)",
        "np.arange(n - n % k) % 1",
        "embedding",
        "hashed",
    ),
    Bug("Hashed scale", "embeddings/hashed.py", "math.sqrt(self.dim / self.of)", "1.0", "embedding", "unit_columns"),
    Bug(
        "sign of the right vector",
        "_base/frames.py",
        "return u * signs, v * signs",
        "return u * signs, v",
        "embedding",
        "lora_xs",
    ),
    Bug(
        "Circulant turned",
        "embeddings/circulant.py",
        "(steps[:, None] - steps)",
        "(steps - steps[:, None])",
        "embedding",
        "scipys",
    ),
    Bug(
        "kernel along one axis",
        "embeddings/separable.py",
        "range(1, len(sizes) + 1)",
        "range(1, 2)",
        "embedding",
        "along_its_axes",
    ),
    Bug(
        "weights scored",
        "methods/coefficients.py",
        "_put(owners[name], alike",
        "(owners[name], alike",
        "coefficients",
        "their_formulas",
    ),
    Bug(
        "sign of SynFlow lost",
        "methods/saliencies/synflow.py",
        "store[name] = value(tensor)",
        "tensor.data = value(tensor)",
        "coefficients",
        "conserves",
    ),
    Bug(
        "moved by the weight's gradient",
        "methods/growth.py",
        "U.coefficients(whole)",
        "whole.flatten()",
        "coefficients",
        "gradient_to_coeff",
    ),
    Bug(
        "pruned returns",
        "methods/gradual_pruning.py",
        "self.budget, None, self.kept)",
        "self.budget, None, None)",
        "gradual",
        "do_not_return",
    ),
    Bug(
        "state of what is pruned",
        "methods/gradual_pruning.py",
        "for t in (theta, *others)), *states[name]):",
        "for t in (theta, *others)),):",
        "gradual",
        "none_returns",
    ),
    Bug("inverted once more", "methods/saliencies/inverted.py", "name: -s", "name: s", "variants", "inverted"),
    Bug(
        "N:M of rows",
        "study/methods/variants.py",
        "else methods.rows(shape)",
        "else methods.blocks(1)(shape)",
        "variants",
        "n_to_m",
    ),
    # offsets
    Bug("wrong normalisation", "offsets/dct.py", "self.gain / math.sqrt(q)", "self.gain", "offset", "truncated_orth"),
    Bug(
        "wrong length", "offsets/dct.py", "q, device = max(n_out, n_in)", "q, device = n_in", "offset", "truncated_orth"
    ),
    Bug(
        "wrong patch order",
        "_base/layout.py",
        "self._taps(shape) + self.inputs",
        "self.inputs + self._taps(shape)",
        "offset",
        "patch",
    ),
    Bug("axes exchanged", "_base/layout.py", "order.index(axis) for", "order[axis] for", "layout", "and_back"),
    # kinds of modules
    Bug("gates as one", "_base/kinds.py", "GATES.get(kind, 1)", "1", "kinds", "computes_with"),
    Bug(
        "experts the other way", "_base/kinds.py", "bias.shape[1] == weight.shape[2]", "True", "kinds", "computes_with"
    ),
    Bug(
        "as many as tensors", "methods/budgets.py", "in range(layout.matrices(shape))", "in range(1)", "kinds", "apart"
    ),
    Bug("groups of axes", "methods/groups.py", "if layout == STANDARD:", "if True:", "kinds", "rows_and_inputs"),
    Bug("one draw for all", "offsets/per_matrix.py", "offset.key.fold(str(number))", "offset.key", "kinds", "itself"),
    Bug(
        "thawed",
        "_base/selection.py",
        'if weight.requires_grad or is_quantised(weight) else "frozen"',
        "if True else None",
        "targets",
        "frozen",
    ),
    Bug(
        "head left free",
        "methods/recipe.py",
        "if self.freezes or also_train",
        "if also_train",
        "targets",
        "nothing_else",
    ),
    Bug("untied", "parametrization/registration.py", "tie(*other, module, name)", "pass", "ties", "read_one_weight"),
    Bug("ties forgotten", "parametrization/removal.py", "    restore_ties(model)", "    pass", "ties", "dense_models"),
    Bug("gain lost in linear", "offsets/dct.py", "(self.gain * dct(padded)", "(dct(padded)", "offset", "linear"),
    Bug("signs of another stream", "offsets/signed.py", 'fold("signs")', 'fold("sign")', "offset", "signed"),
    Bug(
        "Hadamard scale", "offsets/hadamard.py", "math.sqrt(max(n_out, n_in))", "math.sqrt(n_in)", "offset", "hadamard"
    ),
    Bug("fan of a channel", "offsets/gaussian.py", "n_out * self.layout.taps(self.shape)", "n_out", "offset", "torchs"),
    Bug("uniform bound", "offsets/gaussian.py", "std * math.sqrt(3)", "std", "offset", "torchs"),
    Bug(
        "global generator",
        "offsets/gaussian.py",
        "n, wide = math.prod(shape)",
        "torch.rand(1); n, wide = math.prod(shape)",
        "offset",
        "global",
    ),
    # embeddings
    Bug(
        "unsorted index",
        "products/sparse_index.py",
        'return None if index.device.type == "cpu" and is_sorted(index) else',
        'return None if index.device.type == "cpu" else',
        "products",
        "dense_product",
    ),
    Bug(
        "gradients by row",
        "products/native/conv.py",
        "return gvalues if slots is None else",
        "return gvalues if True else",
        "products",
        "every_dtype",
    ),
    Bug("index lost on meta", "_base/plug_in.py", " if not self.like.is_meta else ()", "", "correctness", "lost_its"),
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
    Bug(
        "no square",
        "embeddings/direction.py",
        "(self.scale * (d * d).sum())",
        "(self.scale * d.norm())",
        "embedding",
        "pseudo",
    ),
    Bug(
        "summands swapped",
        "embeddings/direct_sum.py",
        "[U.adjoint(weight) for U in self.parts()]",
        "[U.adjoint(weight) for U in self.parts()][::-1]",
        "embedding",
        "adjoint",
    ),
    Bug(
        "scale forgotten",
        "embeddings/scaled.py",
        "self.scale.to(weight.dtype) * self.embedding.adjoint",
        "self.embedding.adjoint",
        "embedding",
        "adjoint",
    ),
    # the parametrization and its traps
    Bug(
        "d forgotten",
        "parametrization/parametrization.py",
        "w = self.offset() + self.embedding(wide)",
        "w = self.embedding(wide)",
        "parametrization",
        "d_plus_u",
    ),
    Bug(
        "d not subtracted",
        "parametrization/parametrization.py",
        "coordinates(self._wide(weight) - self.offset())",
        "coordinates(self._wide(weight))",
        "parametrization",
        "nearest",
    ),
    Bug(
        "theta of half precision",
        "parametrization/registration.py",
        "dtype or self.dtype",
        "dtype or weight.dtype",
        "dtype",
        "steps",
    ),
    Bug(
        "rounded twice",
        "_base/plug_in.py",
        "dtype=at_least_float32(like.dtype)",
        "dtype=like.dtype",
        "dtype",
        "rounded",
    ),
    Bug(
        "empty Parameter",
        "parametrization/registration.py",
        "if not parametrization.dim:",
        "if False:",
        "empty_theta",
        "optimizer",
    ),
    Bug(
        "d twice",
        "parametrization/parametrization.py",
        "return at, d.gain /",
        "return at, 2 * d.gain /",
        "alpha",
        "multiple_of_a_column",
    ),
    Bug(
        "theta in every layer",
        "parametrization/handle.py",
        "stack.keeper = (stacks[0],)",
        "pass",
        "shared_theta",
        "has_it_once",
    ),
    Bug("unnoticed", "_base/written.py", "counter._version != writes", "False", "written", "said_to_be_lost"),
    Bug(
        "decayed norms",
        "_parameter_groups.py",
        '{"rest": {"weight_decay": 0.0}}',
        '{"rest": {}}',
        "parameter_group",
        "rest_stays",
    ),
    Bug("stale gradient", "parametrization/registration.py", "weight.grad = None", "pass", "traps", "gradient"),
    Bug("shared class", "parametrization/module_class.py", "own.__deepcopy__, ", "own.copies, ", "traps", "deepcopy"),
    Bug("frozen theta", "parametrization/registration.py", "weight.requires_grad_(True)", "pass", "traps", "frozen"),
    Bug(
        "copy left parametrized",
        "parametrization/removal.py",
        "parametrize.remove_parametrizations(",
        "id(",
        "parametrization",
        "materialize",
    ),
    # recipes and budgets
    Bug("names not folded in", "methods/recipe.py", "Key(seed).fold(name)", "Key(seed)", "recipes", "different_maps"),
    Bug("columns as they come", "recipes.py", ".sum(0).rsqrt()", ".sum(0).square().rsqrt()", "recipes", "unit_columns"),
    Bug("truncated budget", "methods/budgets.py", "base[i] += 1", "pass", "recipes", "exact"),
    # off the meta device
    Bug(
        "start forgotten",
        "_initialize.py",
        "else as_parameter_like(start, theta)",
        "else empty_like(theta)",
        "initialize",
        "start_is",
    ),
    Bug(
        "parents first",
        "_initialize.py",
        "in reversed(list(named_modules(model)))",
        "in list(named_modules(model))",
        "initialize",
        "set_by_its_module",
    ),
    Bug(
        "unset and kept",
        "_initialize.py",
        "or bool(tensors[name].isnan().any())",
        "and False",
        "initialize",
        "nothing_sets",
    ),
    # choosing and moving U
    Bug(
        "no mask in RigL",
        "methods/growth.py",
        "block[kept[first:last] - start] = -1",
        "pass",
        "moving",
        "masks",
    ),
    Bug(
        "channels of another group",
        "methods/weight_gradient.py",
        "lowest * channels : highest",
        "0 : highest",
        "weight_gradient",
        "convolution",
    ),
    Bug("one read of two", "methods/growth.py", "gradient + flat[start", "flat[start", "moving", "layers_that"),
    Bug(
        "moments stay behind",
        "methods/moving.py",
        "for state in states[name]:",
        "for state in ():",
        "moving",
        "state",
    ),
    Bug("grown from another", "methods/moving.py", "part.begin_anew(kept, move.slots)", "pass", "moving", "zero"),
    Bug(
        "slots by place",
        "methods/parts.py",
        "return Move(dropped[~torch.isin(places, grown)],",
        "return Move(dropped[~torch.isin(places, grown)].flip(0) - 1,",
        "moving",
        "slot",
    ),
    Bug(
        "averages remember what was dropped",
        "methods/followers.py",
        "model.begin_anew(self.theta, move.slots)",
        "pass",
        "followers",
        "where_it_is_defined",
    ),
    Bug(
        "a move missed",
        "methods/followers.py",
        "if part is not None and not",
        "if False and not",
        "followers",
        "missed",
    ),
    Bug(
        "each by its own batch",
        "methods/growth.py",
        ".contiguous(), self.group)",
        ", None)",
        "processes",
        "as_one_does",
    ),
    Bug(
        "an average that missed a move",
        "_base/lineage.py",
        "and self._missed.was_written(theta):",
        "and False:",
        "followers",
        "missed_a_move",
    ),
    Bug(
        "GraSP of one batch",
        "methods/saliencies/grasp.py",
        "(g * mean(g.detach()))",
        "(g * g.detach())",
        "processes",
        "score_as_one",
    ),
    Bug(
        "moves unchecked",
        "methods/processes.py",
        "if int(ends[0]) != -int(ends[1]):",
        "if False:",
        "processes",
        "refused",
    ),
    Bug(
        "statistics moved",
        "_base/preserve.py",
        "owner[name] = buffer.copy_(content)",
        "pass",
        "saliency",
        "as_it_was",
    ),
    Bug("mode changed", "_base/preserve.py", "module.training = training", "pass", "saliency", "as_it_was"),
    Bug(
        "SynFlow in float32",
        "methods/saliencies/synflow.py",
        "return value.double() if",
        "return value.float() if",
        "saliency",
        "conserves",
    ),
    Bug(
        "FORCE that never returns",
        "methods/prune.py",
        "returning=True)",
        "returning=False)",
        "saliency",
        "force",
    ),
    Bug(
        "not rewound",
        "methods/lottery_ticket.py",
        "model = copy.deepcopy(self.start)",
        "model = self.start",
        "lottery",
        "rewinds",
    ),
    # checkpoints
    Bug(
        "any d and U",
        "_identity/state.py",
        "if why := _difference(",
        "if why := None and (",
        "identity",
        "part_by_part",
    ),
    Bug(
        "pretrained weights of one memory are two",
        "products/weight.py",
        "if matrix is other or matrix is None",
        "if True or matrix is None",
        "structured",
        "one_product",
    ),
    Bug("coarse fingerprints in files", "_identity/fingerprint.py", "2 - math", "-math", "checkpoint", "near_enough"),
    Bug("any pretrained d", "_identity/state.py", "not saved.agrees_with(here)", "False", "identity", "another_d_or_u"),
    Bug("support stays", "_identity/state.py", "support.copy_(index)", "pass", "identity", "restores_the_model"),
    Bug(
        "dense values dropped",
        "parametrization/module_class.py",
        "others[-1].extend(_refused",
        "list(_refused",
        "identity",
        "dense",
    ),
    Bug(
        "signs of all alike",
        "_identity/members.py",
        "json.dumps([about, sums])",
        "json.dumps([])",
        "identity",
        "ensemble",
    ),
    Bug("frozen is of the base", "_base/first_values.py", "known == checksum(", "bool(", "delta", "changed_in_any_way"),
    Bug(
        "wrappers in names",
        "_base/qualified.py",
        "if kind.__name__ in INSIDE and",
        "if False and",
        "delta",
        "names_keys",
    ),
    Bug(
        "no fingerprint",
        "checkpoint/format.py",
        "if not now.agrees_with(Probe(*saved))",
        "if False",
        "checkpoint",
        "as_saved",
    ),
    Bug(
        "no digest",
        "checkpoint/sealed.py",
        'if metadata.get("digest") != digest(metadata["subspace"], tensors)',
        "if False",
        "checkpoint",
        "flipped",
    ),
    Bug(
        "metadata not in the digest",
        "checkpoint/sealed.py",
        "json.dumps(text).encode(), ",
        "",
        "file_laws",
        "flipped_bit",
    ),
    Bug(
        "lies believed",
        "checkpoint/format.py",
        "about, held = read(path)\n        schema.check(about, held)",
        "about, held = read(path)",
        "file_fuzz",
        "work_beyond_its_size",
    ),
    Bug("private files", "_base/files.py", "os.O_WRONLY, 0o666)", "os.O_WRONLY, 0o600)", "file_laws", "has_the_rights"),
    Bug(
        "cache trusted",
        "products/choice/calibration.py",
        "0 <= each < math.inf",
        "True",
        "calibration",
        "damaged_cache",
    ),
    Bug(
        "counts of floats",
        "methods/budgets.py",
        "Fraction(str(float(number)))",
        "Fraction(float(number))",
        "correctness",
        "mover_drops",
    ),
    Bug(
        "asked only once",
        "_structured/forward.py",
        "len(stack._modules) != 1 or ",
        "",
        "correctness",
        "parametrized_again",
    ),
    Bug(
        "emptied with the rest",
        "offsets/pretrained.py",
        "self.weight.to(*now)",
        "fn(self.weight)",
        "correctness",
        "lost_its_values",
    ),
    Bug(
        "theta overwritten",
        "parametrization/handle.py",
        "if len(spaces) > 1:",
        "if False:",
        "correctness",
        "shares_theta_can_go",
    ),
    Bug("no signs of w", "embeddings/srht.py", ".to(x.dtype) * of_w", ".to(x.dtype)", "correctness", "of_a_projection"),
    Bug(
        "nearly zero",
        "_base/waves.py",
        "cos[4 * steps % (2 * period) == period] = 0",
        "pass",
        "correctness",
        "exactly_zero",
    ),
    Bug(
        "written in place",
        "_base/files.py",
        'os.fdopen(_named(temporary) if descriptor is None else descriptor, "wb")',
        'open(path, "wb")',
        "checkpoint",
        "unwritable",
    ),
    Bug(
        "buffers left out",
        "checkpoint/format.py",
        "(*named_parameters(model), *named_buffers(model))",
        "named_parameters(model)",
        "checkpoint",
        "saved_one",
    ),
    Bug(
        "theta counted twice",
        "_summary.py",
        "0 if id(theta) in thetas else theta.nbytes",
        "theta.nbytes",
        "summary",
        "shared",
    ),
    # other libraries
    Bug("mover begun anew", "integrations/resuming.py", "mover.load_state_dict(", "repr(", "lightning", "to_the_bit"),
    Bug("base unchecked", "integrations/resuming.py", "{*saved, *now}", "{*saved} - {*saved}", "lightning", "refused"),
    Bug("base kept", "integrations/lightning.py", ".pop(name, None)", ".get(name)", "lightning", "without_the_base"),
    Bug("steps of batches", "integrations/lightning.py", "> self._steps", "> -1", "lightning", "plain_loop"),
    Bug(
        "loss of another", "integrations/transformers.py", "= args, kwargs\n\n", "= self._batch\n\n", "hugging", "plain"
    ),
    Bug(
        "waves not merged",
        "integrations/peft/fourier_ft.py",
        ".index_add(0, place,",
        ".index_copy(0, place,",
        "peft",
        "here",
    ),
    Bug("alpha left out", "integrations/peft/lora.py", "* alpha /", "/", "peft", "computes_here"),
    Bug(
        "bias not scaled", "integrations/peft/ia3.py", '_parameters.get("bias")', '_parameters.get("")', "peft", "here"
    ),
    # products that never build w
    Bug(
        "wrong partner",
        "products/native/cpp/rows.h",
        "p->position[o ? q - o : 0]",
        "p->position[o]",
        "native_rows",
        "sanitizers",
    ),
    Bug(
        "first row of T",
        "products/native/cpp/rows.h",
        "norm * 0.707106781186547524f",
        "norm",
        "native_rows",
        "sanitizers",
    ),
    Bug(
        "last products lost",
        "products/native/cpp/rows.h",
        "j < count; j += R",
        "j + R <= count; j += R",
        "native_rows",
        "sanitizers",
    ),
    Bug(
        "one row too many",
        "products/native/cpp/rows.h",
        "row < rows ? data",
        "row <= rows ? data",
        "native_rows",
        "sanitizers",
    ),
    Bug(
        "twiddle of another step",
        "products/native/cpp/transforms.h",
        "int64_t(j) * s % length",
        "int64_t(j) % length",
        "native_rows",
        "sanitizers",
    ),
    Bug("random signs once", "embeddings/srht.py", "first * dim)).reshape", "0)).reshape", "srht", "random_signs"),
    Bug("spectrum not real", "embeddings/fourier_ft.py", "gain.where(back, -gain)", "-gain", "fourier", "real_part"),
    Bug(
        "gain forgotten",
        "_structured/normal_form.py",
        "part if gain == 1 else gain * part",
        "part",
        "structured",
        "time_and_memory",
    ),
    Bug(
        "alpha in place of d",
        "_structured/normal_form.py",
        "term if scale is None else scale + term",
        "term",
        "structured",
        "time_and_memory",
    ),
    Bug(
        "foreign forward passed by",
        "_structured/forward.py",
        'and "forward" in vars(module)',
        "and False",
        "foreign_forwards",
        "replaced_before",
    ),
    Bug(
        "others on top lost",
        "parametrization/removal.py",
        "del stack[0]",
        "del stack[1:]",
        "foreign_laws",
        "maps_weights",
    ),
    Bug(
        "class without a name",
        "parametrization/module_class.py",
        ", own.__reduce__ =",
        ", own.reduced =",
        "pickle",
        "is_its_own",
    ),
    Bug("operators in programs", "products/product.py", " and not is_exporting()", "", "export", "any_batch"),
    Bug("drawn by the program", "offsets/gaussian.py", "if is_exporting():", "if False:", "export", "any_batch"),
    Bug(
        "kept of a transform",
        "_base/exporting.py",
        ", temporarily_clear_interpreter_stack():",
        ":",
        "functional",
        "of_no_transform",
    ),
    Bug("padding ignored", "products/geometry.py", "* dilation - padding", "* dilation", "products", "dense_product"),
    Bug(
        "scale once too often",
        "products/parts/combine.py",
        "gx = times(product, w.scale)",
        "gx = times(product, w.scale * w.scale)",
        "products",
        "dense_product",
    ),
    Bug(
        "stale bags",
        "products/sparse_index.py",
        "return index._version, ",
        "return 0, ",
        "products",
        "moves_is_followed",
    ),
    Bug(
        "index unchecked",
        "products/sparse_index.py",
        "if _checked.get(index) != (now, size):",
        "if False:",
        "index_safety",
        "cannot_be_right",
    ),
    Bug(
        "S turned as well",
        "products/weight.py",
        "self._replace(values=self.turn_values(self.values), signs=None)",
        "self._replace(signs=None)",
        "structured",
        "signed",
    ),
    Bug(
        "signs of other groups",
        "products/weight.py",
        ".repeat(x.shape[1] // len",
        ".repeat_interleave(x.shape[1] // len",
        "structured",
        "signed",
    ),
    Bug(
        "own product not used",
        "_structured/forward.py",
        "if layer is nn.Linear and built",
        "if False and built",
        "structured",
        "own_is_used",
    ),
    Bug(
        "gradients not turned back",
        "products/product.py",
        "gvalues = None if gvalues is None else w.turn_values(gvalues)",
        "pass",
        "products",
        "signs",
    ),
    Bug("batch axis kept", "_structured/forward.py", "else y.squeeze(0)", "else y", "structured", "time_and_memory"),
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
        "_base/files.py",
        "os.replace(temporary, target)",
        "target.write_bytes(content)",
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
        "execute",
        "not_trained_again",
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
    Bug("unfit state kept", "study/training/run.py", "states.reject(str(error))", "raise", "execute", "does_not_fit"),
    Bug(
        "a full disk a failure",
        "study/execution/execute.py",
        "exception.errno in FULL",
        "exception.errno is None",
        "runner",
        "full_disk_is_no_failure",
    ),
    Bug("grid not counted", "study/spec/study.py", "> self.limit", "< 0", "cli", "a_million_runs"),
    Bug("control codes shown", "study/entries/words.py", "c.isprintable()", "c", "cli", "control_code"),
    Bug(
        "hosts shared",
        "study/reports/write.py",
        "[without_hosts(record) for record in records]",
        "list(records)",
        "report",
        "names_no_host",
    ),
    Bug("one batch for all rounds", "study/methods/setting.py", "next(number)", "0", "variants", "fresh_batch"),
    Bug(
        "others' growth kept",
        "study/training/team.py",
        "dist.broadcast(tensor.detach(), src=0)",
        "pass",
        "team",
        "move_u_alike",
    ),
    Bug(
        "another base's product",
        "products/bindings.py",
        " and found.matrix is matrix",
        "",
        "bindings",
        "each_change",
    ),
    Bug("closures too late", "_alpha_group.py", "if closure is None:", "if True:", "alpha_group", "closure"),
    Bug(
        "codes of 0", "methods/optimizer_states.py", "int(codes.abs().argmin())", "0", "optimizer_states", "eight_bits"
    ),
    Bug(
        "padding as it was made", "products/layers.py", '== "same"', "== 0", "structured", "structured_changes_nothing"
    ),
    Bug("rows exchanged", "_base/first_values.py", "sums * factors[-1]", "sums", "delta", "rows_of_a_large_tensor"),
    Bug(
        "shared and beside",
        "deltas/deltas.py",
        "if plain and own and not",
        "if plain and not",
        "deltas",
        "shared_weight",
    ),
    Bug(
        "best of nothing", "study/reports/grids.py", 'if is_best else "-"', 'if True else "-"', "grids", "not_the_best"
    ),
    Bug("empty option everywhere", "study/methods/registry.py", 'default != "" and ', "", "variants", "changed_option"),
    Bug("d left out", "products/routes/apart.py", "_rows(gx).addmm_(", "_rows(gx).addmm(", "bindings", "bound_product"),
]


def laws(root: Path, bug: Bug) -> list[Path]:
    """The files that have the bug's law."""
    return sorted(file for file in root.glob(f"tests/**/test_{bug.laws}*.py") if bug.law in file.read_text())


def obstacle(bug: Bug) -> str | None:
    """Why the bug cannot be planted, in a few words; None if it can."""
    file = ROOT / "subspace" / bug.file
    if not file.exists():
        return f"there is no subspace/{bug.file}"
    if (count := file.read_text().count(bug.right)) != 1:
        return f"{bug.right!r} is {count} times in subspace/{bug.file}"
    return None if laws(ROOT, bug) else f"no test_{bug.laws}*.py has a test of {bug.law!r}"


def noticed(bug: Bug) -> tuple[bool, str]:
    """Plant the bug in a copy of the package and run its law there: did a test fail? And what pytest printed."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("subspace", "tests", "benchmarks"):
            ignored = ["__pycache__", *(["results"] if name == "benchmarks" else [])]
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns(*ignored))
        shutil.copy(ROOT / "pyproject.toml", folder)
        file = Path(folder, "subspace", bug.file)
        file.write_text(file.read_text().replace(bug.right, bug.wrong))
        options = ["-qx", "-n0", "-p", "no:cacheprovider", "--hypothesis-profile=once", "-m", "", "-k", bug.law]
        command = [sys.executable, "-m", "pytest", *options, *laws(Path(folder), bug)]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    # 1: a test failed; a broken import, or no test collected, is another status
    return run.returncode == 1, run.stdout + run.stderr
