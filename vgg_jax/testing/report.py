"""The rules of the plugin contract, and what an examination finds of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

Status = Literal["ok", "failed", "does not apply"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule of the contract.

    Attributes:
        name: By which reports call it.
        what: What must be so.
        why: What goes wrong otherwise.
    """

    name: str
    what: str
    why: str


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "can-be-built",
            "It can be loaded, takes its options by keyword, and makes what the contract asks for.",
            "Nothing can be done with it otherwise.",
        ),
        Rule(
            "keyword-only-options",
            "Options are keyword-only, and all have a type.",
            "A command line names options, and checks values against their types.",
        ),
        Rule(
            "documented-options",
            "The docstring describes each option, and numbers with their range: in [0, 1].",
            "`plugins show` prints it; it is all that a user has.",
        ),
        Rule(
            "validated-options",
            "Values outside the documented range raise OptionError.",
            "A typing mistake would ruin a training in silence.",
        ),
        Rule(
            "hashable",
            "It is a frozen dataclass: equal options make equal augmentations, which hash alike.",
            "Compiled steps are kept by their augmentations; unequal ones are compiled again.",
        ),
        Rule(
            "same-key-same-output",
            "The same random key gives the same output.",
            "A run could not be repeated, nor resumed.",
        ),
        Rule(
            "uses-its-key",
            "Different random keys give different outputs.",
            "Every epoch would show the same; say fixed=True (--fixed) where that is meant.",
        ),
        Rule(
            "jit-equals-eager",
            "Compiled by jax.jit it gives the same as uncompiled, to 1e-5.",
            "Training compiles it.",
        ),
        Rule(
            "vmap-equals-loop",
            "Vectorised by jax.vmap it gives the same as picture by picture, to 1e-5.",
            "Training vectorises it over the batch.",
        ),
        Rule(
            "no-recompilation",
            "Other keys and pictures of the same shape do not have it traced again.",
            "Every step would compile for seconds.",
        ),
        Rule("keeps-shape", "The output has the shape of the input.", "The network needs it."),
        Rule(
            "keeps-dtype",
            "The output has the type of the input (float32; uint8 on the host).",
            "Other types double memory, or are refused.",
        ),
        Rule(
            "keeps-range",
            "Values stay in [0, 1] and finite.",
            "The network was trained on such values.",
        ),
        Rule(
            "nothing-at-strength-zero",
            "With its neutral options (probability or strength 0) it changes nothing.",
            "Users turn things off by zero, and expect them to be off. Where other values do"
            " nothing, a class attribute names them: neutral: ClassVar = {'gamma': 1.0}.",
        ),
        Rule(
            "leaves-its-input",
            "A host augmentation does not write into the picture it is given.",
            "The picture may be used again.",
        ),
        Rule(
            "padding-stays-out",
            "Rows of padding never enter valid rows, images and targets alike.",
            "The last batch of an epoch would mix in pictures that are none.",
        ),
        Rule(
            "targets-stay-shares",
            "Each target stays a distribution: in [0, 1], with the sum it had.",
            "The loss would be of something else.",
        ),
        Rule(
            "logits-of-each-picture",
            "The head gives float32 logits [B, K], and a picture's do not depend on the others.",
            "Predictions would depend on the batch they are made in.",
        ),
        Rule(
            "pools-first",
            "A head with a method `pool` begins with self.pool(features), and uses them no more.",
            "Where the backbone is frozen, what `pool` gives is computed once and kept.",
        ),
        Rule(
            "finite-gradient",
            "The gradient of a loss is finite, and reaches every parameter.",
            "Training would diverge, or leave a layer as it is.",
        ),
        Rule(
            "randomness-only-in-training",
            "Evaluation is deterministic; what is random in training comes from nnx.Dropout.",
            "Predictions would differ from call to call.",
        ),
        Rule(
            "seeded-parameters",
            "The same rngs draw the same parameters, others draw others.",
            "A run could not be repeated.",
        ),
        Rule(
            "stable-parameter-names",
            "Names and shapes of parameters are the same each time it is built.",
            "Checkpoints refer to parameters by their names.",
        ),
        Rule(
            "checkpoint-round-trip",
            "Parameters that were saved and restored give the same logits.",
            "A trained head would be lost.",
        ),
        Rule(
            "quick-import",
            "Importing its module takes at most a second beyond JAX, Flax and vgg_jax.api.",
            "Every command that names it waits for it.",
        ),
        Rule(
            "does-not-exit",
            "Importing its module does not end the process, nor print to standard output.",
            "A listing or a training would end with it; output of --json would be spoilt.",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one rule: `seen` says what, or why the rule does not apply."""

    rule: Rule
    status: Status
    seen: str = ""


class PluginContractError(AssertionError):
    """A plugin breaks rules of the contract; the text names each, why it exists, what was seen."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found of a plugin.

    Attributes:
        subject: The plugin.
        findings: One for each rule that was looked at.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The rules that are broken."""
        return tuple(finding for finding in self.findings if finding.status == "failed")

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "plugin": self.subject,
            "passed": not self.failures,
            "rules": [
                {**dataclasses.asdict(finding.rule), "status": finding.status, "seen": finding.seen}
                for finding in self.findings
            ],
        }

    def raise_for_failures(self) -> None:
        """Raise `PluginContractError` if a rule is broken."""
        if self.failures:
            lines = [f"{self.subject} breaks {len(self.failures)} rule(s) of the contract:"]
            for finding in self.failures:
                lines += [
                    f"  {finding.rule.name}: {finding.rule.what}",
                    f"    seen: {finding.seen}",
                    f"    why: {finding.rule.why}",
                ]
            raise PluginContractError("\n".join(lines))


class Examination:
    """Collects findings: a rule is broken if anything seen of it is."""

    def __init__(self) -> None:
        """Begin without findings."""
        self._seen: dict[str, Finding] = {}

    def look(self, rule: str, find: Callable[[], str | None]) -> None:
        """Note what `find` says is wrong, None being nothing; an exception of it is wrong, too."""
        try:
            seen = find()
        except (Exception, SystemExit) as error:  # whatever a plugin raises is the finding
            seen = f"{type(error).__name__}: {error}"
        before = self._seen.get(rule)
        if before is None or before.status != "failed":
            status: Status = "failed" if seen else "ok"
            self._seen[rule] = Finding(RULES[rule], status, seen or "")

    def skip(self, rule: str, reason: str) -> None:
        """Note that a rule does not apply, unless something was seen of it."""
        self._seen.setdefault(rule, Finding(RULES[rule], "does not apply", reason))

    def failed(self, rule: str) -> bool:
        """Tell whether a rule was found broken."""
        found = self._seen.get(rule)
        return found is not None and found.status == "failed"

    def report(self, subject: str) -> Report:
        """Return what was found, in the order of `RULES`."""
        return Report(subject, tuple(self._seen[name] for name in RULES if name in self._seen))
