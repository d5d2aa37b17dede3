"""What the sections of `ffr.config` are made of, and the sections that read no other one.

Use them through `ffr.config`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegInt = Annotated[int, Field(ge=0)]
NonNegFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
UnitFloat = Annotated[float, Field(ge=0.0, le=1.0)]

Rollouts = Literal["hf", "vllm_server", "vllm_colocate"]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class LoraConfig(Section):
    """Low-rank adapters instead of all weights; they are merged into the exported student.

    Example:
        >>> LoraConfig(rank=64).scaled_by
        128.0
    """

    rank: NonNegInt = 0
    """0 trains all weights."""
    alpha: PositiveFloat | None = None
    """The adapters' sum is scaled by alpha / rank; twice the rank when unset."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of the adapters' input while the loss is computed; sampling and scoring never drop."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Ends of module names, such as q_proj,v_proj; `all-linear` is every linear layer but the head."""

    @property
    def scaled_by(self) -> float:
        """`alpha`, or what its None stands for."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class VllmConfig(Section):
    """Rollouts from vLLM (`train.rollouts`) and the correction for its own log-probabilities.

    Example:
        >>> VllmConfig(base_urls=("http://127.0.0.1:8000/v1",)).importance_cap
        2.0
    """

    base_urls: tuple[str, ...] = ()
    """Addresses of `vllm serve`, /v1 included. Several: a question's rollouts go to one of them."""
    api_key_env: str = "FFR_VLLM_API_KEY"
    """Name of the environment variable with the servers' key."""
    overlap: bool = True
    """With a server every rollout goes through teacher and second try on its own, so the teacher's time hides
    behind other rollouts. False: all first passes, then the teacher, then all second tries."""
    concurrency: PositiveInt = 64
    """Requests of one training process at a time."""
    attempt_timeout_s: PositiveFloat = 300.0
    rollout_deadline_s: PositiveFloat = 900.0
    """For one rollout, retries included; then the run stops."""
    max_retries: NonNegInt = 3
    group_port: PositiveInt = 51216
    """Port on which the weights are sent to the first server (NCCL); the next servers' ports follow."""
    correction: Literal["token_truncate", "none"] = "token_truncate"
    """Weights tokens by pi_old / mu, the trainer's probability over vLLM's, cut at `importance_cap`."""
    importance_cap: Annotated[float, Field(ge=1.0)] = 2.0
    memory_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """`vllm_colocate`: share of each GPU that vLLM may take."""

    def check(self, rollouts: Rollouts, top_p: float) -> None:
        """Refuse settings that cannot give right rollouts.

        Args:
            rollouts: `train.rollouts`.
            top_p: `find.top_p`.

        Raises:
            ValueError: With the keys and the remedy.
        """
        if rollouts == "hf":
            return
        if rollouts == "vllm_server" and not self.base_urls:
            raise ValueError(
                "train.rollouts = 'vllm_server' needs train.vllm.base_urls, the address of `vllm serve`: "
                "http://127.0.0.1:8000/v1, for instance"
            )
        if top_p < 1.0 and self.correction != "none":
            raise ValueError(
                f"train.rollouts = '{rollouts}' with find.top_p = {top_p}: vLLM then reports probabilities "
                "of the cut distribution, and the correction pi_old / mu would be biased: set find.top_p = 1 "
                "(or train.vllm.correction = 'none' to train without it)"
            )


class LeakConfig(Section):
    """The leak gate's layers.

    Example:
        >>> LeakConfig().min_range_frames
        2
    """

    enabled: bool = True
    min_range_frames: PositiveInt = 2
    """Narrower ranges pin the answer down (paper: ranges, never single frames)."""
    min_box_area: UnitFloat = 0.01
    max_guidance_chars: PositiveInt = 300
    reader_threshold: float | None = None
    """Score over which the reader refuses a patch; lower refuses more. None: as fitted."""
    max_reasks: NonNegInt = 1
    """How often a leaking patch is asked for again before it is dropped."""
    blind: Literal["off", "teacher", "model"] = "off"
    """Last layer: does a model that sees no video answer better with the patch than without? `teacher` asks
    the teacher's own model, `model` that of `blind_model` at `blind_base_url`."""
    blind_model: str = ""
    blind_base_url: str = ""
    blind_api_key_env: str = "FFR_BLIND_API_KEY"
    """Name of the environment variable with the key of `blind_base_url`."""
    blind_asks: Annotated[int, Field(ge=1, le=64)] = 8
    """How often the question is put with and without the patch (orders of the options, seeds): two requests
    each, and fewer where those settle it (5 of 8 by the defaults)."""
    blind_lift: UnitFloat = 0.25
    """A leak is a gain of at least this in the share of right answers ..."""
    blind_p_value: UnitFloat = 0.1
    """... with at most this exact one-sided p-value (sign test). By the defaults a patch that says nothing is
    refused in at most 3 % of cases, one that names one of four options passes in at most 3 %."""
    blind_on_fault: Literal["refuse", "pass"] = "refuse"
    """A test that could not be done (server down, no usable answers): `refuse` shows no patch, `pass` trusts
    the other layers."""
    blind_temperature: NonNegFloat = 0.7
    blind_deadline_s: PositiveFloat = 60.0
    """For one test; the step's deadline holds besides."""
    blind_price_prompt_per_mtok: NonNegFloat = 0.0
    """US dollars per million prompt tokens of `blind_model`; `teacher` has the teacher's prices."""
    blind_price_completion_per_mtok: NonNegFloat = 0.0

    @model_validator(mode="after")
    def _blind_model_is_named(self) -> LeakConfig:
        if self.blind == "model" and not (self.blind_model and self.blind_base_url):
            raise ValueError(
                "fix.leak.blind = 'model' needs fix.leak.blind_model and fix.leak.blind_base_url"
            )
        if 0.5**self.blind_asks > self.blind_p_value:
            raise ValueError(
                f"fix.leak.blind_asks = {self.blind_asks} cannot reach fix.leak.blind_p_value = "
                f"{self.blind_p_value:g}: {self.blind_asks} wins give {0.5**self.blind_asks:.2g}; ask more"
            )
        return self
