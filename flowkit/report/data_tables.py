"""Tables of the data page: counts, refused images, channels, norms, and evaluated images that are near to training."""

from __future__ import annotations

from collections.abc import Sequence

from flowkit.report.measures import plain, short
from flowkit.report.survey import (
    LARGEST_PERCENT,
    Channel,
    ChannelSummary,
    DatasetCount,
    EncoderCount,
    Matches,
    Survey,
    channels_in,
)
from flowkit.report.tables import Cell, Header, Line, Table


def counts_table(datasets: Sequence[DatasetCount]) -> Table:
    """Return what became of the images of each data set, a line per encoder."""
    headers = [Header("data set"), Header("encoder"), Header("tars", numeric=True)]
    headers += [Header("images read", "Encoded or refused, by this encoder.", numeric=True)]
    headers += [Header(name, numeric=True) for name in ("encoded", "refused")]
    headers += [Header("pairs", "Images that both encoders encoded, joined by their keys.", numeric=True)]
    lines = [_counts_line(dataset, encoder) for dataset in datasets for encoder in dataset.encoders]
    return Table("From tars to pairs. Both encoders read the same tars.", headers, lines)


def _counts_line(dataset: DatasetCount, encoder: EncoderCount) -> Line:
    read = encoder.encoded + encoder.refused
    limit = f"the first {dataset.limit:,} of each tar" if dataset.limit is not None else ""
    kept = encoder.role if encoder.storage == "float16" else f"{encoder.role}, kept as {encoder.storage}"
    share = f"{plain(100 * encoder.refused / read, 2)} %" if encoder.refused else ""
    is_trained = dataset.use == "training"
    part = f"{dataset.held_out_pairs:,} held out" if is_trained else f"{dataset.evaluated:,} evaluated"
    return Line(
        [
            Cell(dataset.name, note=f"{dataset.kind}, {dataset.use}"),
            Cell(encoder.encoder, note=kept),
            _number(dataset.tars, f"{dataset.held_out_tars:,} held out" if dataset.held_out_tars else ""),
            _number(read, limit),
            _number(encoder.encoded),
            _number(encoder.refused, share),
            _number(dataset.pairs, part),
        ]
    )


def lost_table(datasets: Sequence[DatasetCount]) -> Table | None:
    """Return why images are in no pair; None where every image is."""
    lines = [
        Line([Cell(dataset.name), Cell(reason), _number(count)])
        for dataset in datasets
        for reason, count in dataset.fell_out.items()
    ]
    headers = [Header("data set"), Header("side and reason"), Header("images", numeric=True)]
    return (
        Table("Images that are in no pair, because one encoder or both lack them.", headers, lines)
        if lines
        else None
    )


def refused_table(survey: Survey) -> Table | None:
    """Return how often each encoder refused an image, by reason; None if none was refused."""
    lines = [
        Line([Cell(one.dataset), Cell(one.reason), _number(one.source), _number(one.target)])
        for one in survey.found.refused
    ]
    headers = [
        Header("data set"),
        Header("reason"),
        Header("source", numeric=True),
        Header("target", numeric=True),
    ]
    return Table("Refused images by reason: how many by each encoder.", headers, lines) if lines else None


def channels_table(channels: Sequence[ChannelSummary]) -> Table:
    """Return what stands out among the channels of each encoder, on training and on evaluated images."""
    massive = "Channels whose root mean square is over ten times that of the median channel."
    kurtosis = "Of the median channel; 3 is a normal distribution. Below: the largest."
    constant = "Channels that vary less than float16 can tell."
    offset = "How many spreads the mean of a channel lies from zero, at most."
    headers = [Header("tokens"), Header("channels", numeric=True), Header("constant", constant, numeric=True)]
    headers += [Header("massive", massive, numeric=True), Header("median spread", numeric=True)]
    headers += [
        Header("largest |mean| / spread", offset, numeric=True),
        Header("kurtosis", kurtosis, numeric=True),
    ]
    shown = [
        percent
        for percent in LARGEST_PERCENT
        if not percent or any(_count_of(percent, one) > 1 for one in channels)
    ]
    names = [f"the largest {percent} %" if percent else "the largest channel" for percent in shown]
    headers += [Header(f"variance in {name}", numeric=True) for name in names]
    caption = (
        "Channels over all tokens. On the right: the share of the variance that the largest channels hold."
    )
    return Table(caption, headers, [_channels_line(one, shown) for one in channels])


def _channels_line(one: ChannelSummary, percents: Sequence[int]) -> Line:
    counts = [_count_of(percent, one) for percent in percents]
    far = one.largest_offset
    largest = "" if one.largest_kurtosis is None else f"up to {short(one.largest_kurtosis)}"
    return Line(
        [
            Cell(f"{one.role}, {one.use}", note=f"{one.tokens:,} tokens"),
            _number(one.channels),
            _number(one.constant),
            _number(one.massive),
            _value(one.median_spread),
            _value(far.offset if far else None, f"channel {far.number}" if far else ""),
            _value(one.median_kurtosis, largest),
            *(_percent(one.top_share[count], f"{count:,} of {one.channels:,}") for count in counts),
        ]
    )


def top_table(one: ChannelSummary) -> Table:
    """Return the channels of the largest variance."""
    names = ("mean", "spread", "|mean| / spread", "kurtosis", "share of the variance")
    headers = [Header("channel"), *(Header(name, numeric=True) for name in names)]
    return Table(
        f"{one.role.capitalize()}, {one.use} images.", headers, [_channel_line(top) for top in one.top]
    )


def _count_of(percent: int, one: ChannelSummary) -> int:
    return channels_in(percent, one.channels)


def _channel_line(top: Channel) -> Line:
    values = (top.mean, top.spread, top.offset, top.kurtosis)
    return Line([Cell(str(top.number)), *map(_value, values), _percent(top.share)])


def norms_table(survey: Survey) -> Table:
    """Return quantiles of the norms of each sort of token."""
    headers = [
        Header("tokens"),
        *(Header(name, numeric=True) for name in ("number", "1 %", "median", "99 %", "largest")),
    ]
    lines = [
        Line(
            [
                Cell(f"{one.role}, {one.kind}", note=one.use),
                _number(one.tokens),
                *(_value(value) for value in (one.low, one.median, one.high, one.largest)),
            ]
        )
        for one in survey.found.norms
    ]
    return Table("Euclidean norms: 1 % lie below the first quantile, 99 % below the last.", headers, lines)


def thresholds_table(matches: Matches) -> Table:
    """Return how many evaluated images have a best match above each cosine, by where it was looked for."""
    headers = [
        Header("best match above"),
        Header(f"among all {matches.training:,} training images", numeric=True),
    ]
    headers += [
        Header(
            f"among {matches.as_many:,} training images", "Evenly spaced over the training set.", numeric=True
        )
    ]
    headers += [Header(f"among the {max(matches.evaluated - 1, 0):,} other evaluated images", numeric=True)]
    lines = []
    for one in matches.above:
        counts = (one.training, one.as_many, one.within)
        cells = [_number(count, _share(count, matches.evaluated)) for count in counts]
        lines.append(Line([Cell(cosine_text(one.cosine)), *cells]))
    caption = f"Evaluated images, of {matches.evaluated:,}, whose nearest image by cosine is above a level."
    return Table(caption, headers, lines)


def _number(value: int, note: str = "") -> Cell:
    return Cell(f"{value:,}", note=note, number=value)


def _value(value: float | None, note: str = "") -> Cell:
    return Cell("–", missing=True) if value is None else Cell(short(value), note=note, number=value)


def _percent(share: float, note: str = "") -> Cell:
    return Cell(f"{plain(100 * share, 1)} %", note=note, number=share)


def _share(count: int, of: int) -> str:
    return f"{plain(100 * count / of, 1)} %" if of else ""


def cosine_text(cosine: float) -> str:
    """Two decimals without the zero before them, as cosines are written in this report."""
    return plain(cosine, 2).removeprefix("0")
