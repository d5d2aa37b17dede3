"""One frozen configuration tree; every class default is the paper's setting, with its source.

A TOML file under `configs/` only says what differs. Sources: "paper" is FFR (arXiv 2604.16243),
section 4.1 and appendix table 8; "release" is the authors' code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ffr.config_parts import (
    LeakConfig,
    LoraConfig,
    NonNegFloat,
    NonNegInt,
    PositiveFloat,
    PositiveInt,
    Rollouts,
    Section,
    UnitFloat,
    VllmConfig,
)


class SourceConfig(Section):
    """One data source of the mixture.

    Example:
        >>> SourceConfig(path=Path("Video-R1-260k.json"), root=Path("data")).format
        'video_r1'
    """

    path: Path
    """Annotation file (JSON or JSONL)."""
    root: Path
    """Media root; no path of the file may leave it."""
    format: Literal["video_r1", "video_holmes", "jsonl"] = "video_r1"
    name: str = ""
    """Name in tables; the file's stem when empty."""
    weight: PositiveFloat = 1.0
    """Share of the mixture, relative to the other sources."""


class DataConfig(Section):
    """What is trained on.

    Example:
        >>> DataConfig().num_samples
        4000
    """

    sources: tuple[SourceConfig, ...] = ()
    num_samples: PositiveInt | None = 4000
    """Size of the mixture (paper: 4,000 from Video-R1, Video-Thinker and Video-Holmes)."""
    media: Literal["video", "image", "both"] = "both"
    seed: int = 42


class ObserveConfig(Section):
    """Which frames the student sees and how the question is put.

    Example:
        >>> ObserveConfig().num_frames, ObserveConfig().max_frame_px
        (16, 100352)
    """

    num_frames: PositiveInt = 16
    """Frames, uniform, first and last included (paper: 16)."""
    max_frame_px: PositiveInt = 128 * 28 * 28
    """Upper limit of one video frame's area (paper: 128*28*28)."""
    min_frame_px: PositiveInt = 16 * 28 * 28
    max_image_px: PositiveInt = 401_408
    """Upper limit of an image's area (release: 401,408)."""
    size_factor_px: PositiveInt = 28
    """Sides are multiples of it: patch size times merge size of the student (Qwen2.5-VL 28, Qwen3-VL 32)."""
    prompt: Literal["video_r1", "brief"] = "video_r1"
    """Template under `observe/prompts/`; `video_r1` is the paper's."""
    state_frames: bool = True
    """Say in the prompt how many frames there are and when: patches point at frame numbers."""
    cache_dir: Path | None = None
    """Frame cache, keyed by content; none when unset."""


class FindConfig(Section):
    """How rollouts are sampled and judged.

    Example:
        >>> FindConfig().group_size
        8
    """

    group_size: PositiveInt = 8
    """G (paper: 8)."""
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    max_completion_tokens: PositiveInt = 1024
    max_prompt_tokens: PositiveInt = 16_384
    profile: Literal["robust", "video_r1_strict"] = "robust"
    """Verifier profile; `video_r1_strict` is bit-compatible with the released reward."""
    free_form_threshold: UnitFloat = 0.5
    """Score from which a free-form rollout is right (release: 1.0, which calls the teacher on nearly all)."""
    ocr_threshold: UnitFloat = 0.9
    regression_threshold: UnitFloat = 0.9


class TeacherConfig(Section):
    """Who repairs.

    Example:
        >>> TeacherConfig().type
        'openai'
    """

    type: Literal["openai", "oracle", "none"] = "openai"
    """`openai`: any OpenAI-compatible server; `oracle`: answers from known evidence (MicroWorld, tracks)."""
    base_url: str = ""
    model: str = "zai-org/GLM-4.5V"
    """Paper: GLM-4.5V."""
    api_key_env: str = "FFR_TEACHER_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written."""
    profile: Literal["auto", "vllm", "sglang", "openai", "glm", "transformers"] = "auto"
    boxes: Literal["auto", "unit", "per_mille", "pixels"] = "auto"
    """How the model writes boxes: fractions, thousandths, pixels; `auto` goes by the model's name."""
    temperature: NonNegFloat = 0.1
    """Release: 0.1."""
    max_tokens: PositiveInt = 1024
    max_tool_calls: NonNegInt = 6
    max_images: PositiveInt = 48
    max_image_px: PositiveInt = 401_408
    tool_timeout_s: PositiveFloat = 20.0
    """For one look of a tool at the clip; a file that hangs the decoder is an error that it reads."""
    attempt_timeout_s: PositiveFloat = 60.0
    rollout_deadline_s: PositiveFloat = 120.0
    step_deadline_s: PositiveFloat = 180.0
    max_retries: NonNegInt = 3
    concurrency: PositiveInt = 16
    """Requests at a time, at most; fewer while the server answers 429 or 503, or falls silent."""
    breaker_failures: PositiveInt = 8
    """Consecutive transport failures that open the circuit."""
    breaker_open_s: PositiveFloat = 30.0
    price_prompt_per_mtok: NonNegFloat = 0.0
    """US dollars per million prompt tokens, for the cost in summaries; 0 is unknown."""
    price_completion_per_mtok: NonNegFloat = 0.0
    """US dollars per million completion tokens; 0 is unknown."""
    oracle_error_rate: UnitFloat = 0.0
    """Oracle only: share of diagnoses that point at a wrong place, for studies."""


class BudgetConfig(Section):
    """Limits on teacher calls; None is no limit.

    Example:
        >>> BudgetConfig(max_calls_per_run=100).max_calls_per_group is None
        True
    """

    max_calls_per_run: PositiveInt | None = None
    max_calls_per_step: PositiveInt | None = None
    max_calls_per_group: PositiveInt | None = None


class FixConfig(Section):
    """The teacher, its patch, the leak gate and the budget.

    Example:
        >>> FixConfig().visual
        'pointers'
    """

    teacher: TeacherConfig = TeacherConfig()
    leak: LeakConfig = LeakConfig()
    budget: BudgetConfig = BudgetConfig()
    visual: Literal["none", "pointers", "frames"] = "pointers"
    """What of the patch's visual context reaches the student (paper: pointers; `none` is its ablation)."""
    reference_answer: bool = True
    """Whether the teacher sees the gold answer."""
    prompt_config: Literal["none", "format", "negative", "both"] = "both"
    """Leak-prevention parts of the teacher prompt (paper table 5)."""
    one_patch_per_answer: bool = False
    """Share one patch among rollouts of a group with the same wrong answer."""
    allow_no_teacher: bool = False
    """Go on when the teacher never succeeds; otherwise the run stops with an error."""
    no_teacher_after: PositiveInt = 32
    """Calls without one success after which the run stops."""

    @model_validator(mode="after")
    def _blind_teacher_can_be_asked(self) -> FixConfig:
        if self.leak.blind == "teacher" and self.teacher.type != "openai":
            raise ValueError(
                f"fix.leak.blind = 'teacher' needs a model that can be asked, and fix.teacher.type is "
                f"'{self.teacher.type}'; use 'model' with fix.leak.blind_model and fix.leak.blind_base_url"
            )
        return self


class ReasonConfig(Section):
    """FFR's equations and their switches.

    Example:
        >>> ReasonConfig().patch_tax
        0.3
    """

    patch_tax: NonNegFloat = 0.3
    """kappa, eq. 8 (paper: 0.3)."""
    tax_on: Literal["assisted_success", "any_patched"] = "assisted_success"
    """Paper's prose: assisted success; release: any patched rollout."""
    chosen: Literal["per_slot", "best_of_group"] = "per_slot"
    """Eq. 7: per slot; appendix E.2 speaks of the best of the group."""
    credit: Literal["chosen", "released"] = "chosen"
    """`released` puts the repaired reward on the failed tokens, for comparison only."""
    loss_norm: Literal["token_mean", "seq_mean", "dr_grpo"] = "token_mean"
    """Eq. 11: 1 / sum |tau|; release: mean of per-sequence means."""
    scale: Literal["std", "none"] = "std"
    baseline: Literal["group", "first_pass"] = "group"
    """`first_pass`: mean of the un-repaired rewards (methods: cures the tax's inertness)."""
    clamp_repaired: bool = False
    """Never a negative advantage for a successful repair."""
    advantage_eps: PositiveFloat = 1e-4
    clip_eps: PositiveFloat = 0.2
    kl_beta: NonNegFloat = 0.04
    train_view: Literal["own", "reattach", "shaped", "true_is"] = "own"
    """The observation a repaired rollout is trained in: x + c (`own`, eq. 10) or x (the others)."""
    shaping_gamma: PositiveFloat = 0.1
    """gamma of p / (p + gamma), `train_view = "shaped"`."""
    true_is_clamp: PositiveFloat = 2.0


class ModelConfig(Section):
    """The student.

    Example:
        >>> ModelConfig().path
        'Qwen/Qwen2.5-VL-7B-Instruct'
    """

    path: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """Hugging Face id or directory (paper: Qwen2.5-VL-7B; `micro-student` is the shipped one)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    gradient_checkpointing: bool = True
    lora: LoraConfig = LoraConfig()
    freeze_vision: bool = False
    """Train nothing in the vision tower."""
    shared_prefix: bool = True
    """Score a group in one sequence that reads the clip and the question once; False: row by row."""


class TrainConfig(Section):
    """Optimiser and loop.

    Example:
        >>> TrainConfig().learning_rate
        5e-06
    """

    algorithm: Literal["ffr", "grpo", "ffr_released", "sft"] = "ffr"
    engine: Literal["trl"] = "trl"
    learning_rate: PositiveFloat = 5e-6
    """Paper: 5e-6."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup_ratio: UnitFloat = 0.0
    weight_decay: NonNegFloat = 0.01
    max_grad_norm: PositiveFloat = 5.0
    num_epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    """Stops earlier than the epochs when set."""
    questions_per_step: PositiveInt = 1
    """Questions of one optimiser step on one process (release: 1)."""
    micro_batch_size: PositiveInt | None = None
    """Rollouts of one forward pass of the loss, a question's next to each other; fewer take less memory.
    None: a whole group where it shares its observation (`model.shared_prefix`), else one."""
    updates_per_batch: PositiveInt = 1
    """Optimiser passes over the same rollouts; the ratio leaves 1 from the second on."""
    seed: int = 42
    cpu: bool = False
    save_every: PositiveInt = 100
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    watchdog_s: PositiveFloat | None = 1800.0
    """A phase of one process that lasts longer is reported, with its samples and what the others do."""
    watchdog_abort: bool = False
    """End the process (status 124) after that report."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    rollouts: Rollouts = "hf"
    """Who samples: this process (`hf`), a `vllm serve` elsewhere, or vLLM on the training GPUs."""
    vllm: VllmConfig = VllmConfig()


class ReportConfig(Section):
    """Where the run writes.

    Example:
        >>> ReportConfig().trace_every
        1
    """

    output_dir: Path = Path("outputs/ffr")
    trace_every: PositiveInt = 1
    """Steps between traced steps."""
    trace_groups: PositiveInt = 2
    """Groups traced per traced step."""
    sync_timings: bool = False
    """Wait for the GPU at the borders of phases: `time/*` is then exact, and a step a little slower."""
    display: Literal["rich", "plain", "none"] = "rich"


class Config(Section):
    """The whole of a run.

    Example:
        >>> Config().reason.patch_tax
        0.3
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    observe: ObserveConfig = ObserveConfig()
    find: FindConfig = FindConfig()
    fix: FixConfig = FixConfig()
    reason: ReasonConfig = ReasonConfig()
    train: TrainConfig = TrainConfig()
    report: ReportConfig = ReportConfig()

    @property
    def rows_per_pass(self) -> int:
        """`train.micro_batch_size`, or what its None stands for."""
        if self.train.micro_batch_size is not None:
            return self.train.micro_batch_size
        share = self.model.shared_prefix and self.train.algorithm != "sft"
        return self.find.group_size if share else 1

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.train.algorithm == "ffr_released" and self.reason.train_view != "own":
            raise ValueError("reason.train_view must be 'own' with train.algorithm = 'ffr_released'")
        self.train.vllm.check(self.train.rollouts, self.find.top_p)
        if self.observe.min_frame_px > self.observe.max_frame_px:
            raise ValueError(
                f"observe.min_frame_px ({self.observe.min_frame_px}) is larger than "
                f"observe.max_frame_px ({self.observe.max_frame_px})"
            )
        return self
