"""Options of the gates that make a language model smaller."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass


@dataclass
class GatesConfig(FairseqDataclass):
    """Options of the gates on embeddings and neurons."""

    l0_penalty: float = field(
        default=0.0,
        metadata={
            "help": "weight of the expected number of neurons that stay, in nats a token: it "
            "closes gates on embeddings and neurons, which fixedpoint-convert --prune cuts out"
        },
    )
    l0_keep: float = field(
        default=0.0,
        metadata={
            "help": "share of the embeddings' dimensions and neurons that --l0-penalty leaves alone"
        },
    )
    l0_updates: int = field(
        default=0,
        metadata={
            "help": "in how many updates that share falls from all to --l0-keep, so that the "
            "weights can follow"
        },
    )
