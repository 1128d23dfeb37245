"""Decoding of video files to frames as a player shows them: the right stream, upright, in square pixels, in
sRGB.

The packets of a file are listed once without decoding; frames are then decoded from the keyframe before.

- stream: never a cover picture; of several, the one marked as default, else the first.
- geometry: the display matrix with its reflections (or the tag `rotate`, without a matrix) and the sample
    aspect ratio: the shorter side of a pixel is stretched. Ratios beyond 1:10 are ignored.
- colour: the tagged matrix and range. Untagged is limited range, BT.709 from 720 lines on, else BT.601; lines
    are counted before the rotation, as browsers do. HDR is not tone-mapped, with a warning.
- alpha: blended on white, as with pictures, also the separate alpha of a webm.
- time: with a variable frame rate, frames are chosen by their times, see `evenly`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edg.core import video
from edg.core.errors import BadFileError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

HD_LINES = 720
WIDEST_PIXEL = 10
FIELDS = "interlaced: each frame mixes two moments in alternating lines"
HDR = "HDR: its frames are read without tone mapping, so they look paler than in a video player"
LOST = 4  # frames at the end of a file that was cut: a player shows the others
_WEB_CODECS = {  # container, codec -> pixel formats that Chromium, Firefox and Safari all play
    (".mp4", "h264"): ("yuv420p", "yuvj420p"),
    (".mp4", "vp9"): ("yuv420p",),
    (".mp4", "av1"): ("yuv420p", "yuv420p10le"),
    (".webm", "vp8"): ("yuv420p",),
    (".webm", "vp9"): ("yuv420p",),
    (".webm", "av1"): ("yuv420p", "yuv420p10le"),
}
_WEB_SOUND = ("aac", "mp3", "opus", "vorbis", "flac")
_ALPHA_BESIDE = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # codec -> decoder of the alpha beside its pictures
_SEEKS_EXACTLY = ("mp4", "matroska")  # in FFmpeg's names of the container formats
_PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpegls", "jpeg2000")
_LIMITED_GREY = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "prores")
_HDR = (16, 18)  # FFmpeg's AVCOL_TRC_SMPTE2084 (PQ) and AVCOL_TRC_ARIB_STD_B67 (HLG)
_RGB, _FULL, _LIMITED = 0, 2, 1  # FFmpeg's AVCOL_SPC_RGB, AVCOL_RANGE_JPEG, AVCOL_RANGE_MPEG
_BT709, _BT601, _MATRICES = 1, 5, (1, 4, 5, 6, 7, 9, 10)  # those that swscale knows
# swscale's quick way is up to 3 levels too dark: bilinear, full_chroma_int, accurate_rnd, and into planes,
# which takes half the time that packed pixels take.
_EXACT, _PLANES = 0x2 | 0x2000 | 0x40000, "gbrp"


class _Packet(NamedTuple):
    time: int | None
    key: bool
    hidden: bool
    corrupt: bool
    lasts: int


class Film:
    """An opened video file. Raises BadFileError when it cannot be read.

    frames: number of frames.
    fps: frames per second, the mean of a variable rate.
    times: float64 (frames,), seconds from the first frame on.
    end: end of the last frame.
    steady: True for a constant frame rate.
    size: (H, W) as shown.
    warnings: complete once all frames are decoded.
    plain: any decoder would read the same: one stream, a container that seeks exactly, every frame shown
        after its keyframe, upright, square pixels, 8 bits, colour of BT.601.
    """

    name = "pyav"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.warnings: list[str] = []
        self._formatter = None
        self._call(self._index)
        if not self.frames:
            raise BadFileError(f"{path} contains no frames")

    def _call(self, function, *args):
        import av

        try:
            return function(*args)
        except BadFileError:
            raise
        except (av.FFmpegError, OSError, IndexError, ValueError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BadFileError(f"cannot read the video {self.path}: {reason}") from error

    # ---- the file without decoding -------------------------------------------------------------------------

    def _index(self) -> None:
        """Times of all visible frames and of the keyframes, in units of the stream."""
        with video.open_container(self.path) as container:
            streams = _candidates(container, self.path)
            found: dict[int, list[_Packet]] = {stream.index: [] for stream in streams}
            for packet in container.demux(streams):
                if packet.size:
                    flags = packet.is_keyframe, packet.is_discard, packet.is_corrupt
                    found[packet.stream.index].append(_Packet(packet.pts, *flags, packet.duration or 0))
            stream = _shown_stream(streams, found)
            self._stream, packets = stream.index, _whole(found[stream.index])
            self._cut = len(packets) < len(found[stream.index])
            if "mp4" in container.format.name and len(packets) < stream.frames:
                self._need_all(stream.frames)
            shown = [packet.time for packet in _decodable(packets) if not packet.hidden]
            self.frames = len(shown)
            tags = {name.lower(): value for name, value in stream.metadata.items()}
            self._rotate = tags.get("rotate", "")
            usual = stream.codec_context.pix_fmt == "yuv420p"  # libvpx is often built without 10 bits
            self._clear = usual and tags.get("alpha_mode") == "1" and _codec(stream) in _ALPHA_BESIDE
            self._ratio = _pixel_ratio(stream.sample_aspect_ratio)
            numbered = None in shown or len(set(shown)) < len(shown)  # no usable times: count while decoding
            self._times = None if numbered else sorted(shown)
            self._keys = sorted(one.time for one in packets if one.key and one.time is not None)
            last = max(packets, key=lambda one: one.time or 0, default=None)
            self._set_rate(stream, last.lasts if last else 0)
            whole = len(shown) == max(len(packets), stream.frames) and not numbered
            exact = any(name in container.format.name for name in _SEEKS_EXACTLY)
            alone = len(container.streams.video) == 1
            self._ordinary = whole and exact and alone and not _leads(packets) and self._ratio == 1
            self._web = _web_ending(container, stream, self.path)
            if getattr(stream.codec_context, "field_order", 0) > 1:
                self._warn(FIELDS)

    def _need_all(self, expected: int) -> None:
        """Packets may be missing because an edit list hides them. Raises BadFileError when more than the last
        few are gone."""
        with video.open_container(self.path, ignore_editlist="1") as container:
            stream = container.streams[self._stream]
            there = sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(stream))
        if expected - there > min(LOST, expected // 10):
            raise BadFileError(f"{self.path} is cut short: it has {there} of {expected} frames")

    def _set_rate(self, stream: VideoStream, lasts: int) -> None:
        """fps, times, steady, end. The container's rate counts where the frames keep it, to half a frame: it
        is often that of all frames, also of hidden ones, or of nothing at all."""
        claimed = float(stream.average_rate or stream.guessed_rate or 0)
        self._offset = abs(float(self._times[0] * stream.time_base)) if self._times else 0.0
        if self._times is None or self.frames < 2:
            self.fps, self.steady = claimed, True
            self.times = np.arange(self.frames) / (claimed or 1)
            self.end = self.frames / (claimed or 1)
            return
        ticks = np.array(self._times, dtype=np.float64)
        self.times = (ticks - ticks[0]) * float(stream.time_base)
        mean = (self.frames - 1) / float(self.times[-1])
        self.fps = claimed if _keeps(self.times, claimed) else mean
        self.steady = _keeps(self.times, self.fps)
        self.end = float(self.times[-1] + (lasts * stream.time_base or self.times[-1] - self.times[-2]))

    # ---- frames --------------------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        return self._first[2]

    @property
    def plain(self) -> bool:
        return self._ordinary and self._first[1]

    @property
    def web_ending(self) -> str:
        """ ".mp4" or ".webm" if browsers play the file as it is and show the same frames, else ""."""
        at_zero = self._times is not None and self._offset * self.fps < 0.5
        same = self._ordinary and self.steady and at_zero and self._first[0]
        return self._web if same else ""

    @property
    def _first(self) -> tuple[bool, bool, tuple[int, int]]:
        """The first decoded frame: upright, upright and usual in colour, size."""
        if not hasattr(self, "_seen"):
            self.get([0])
        return self._seen

    def get(self, indices: Sequence[int]) -> np.ndarray:
        """Frames (0 <= index < frames, any order) as uint8 (T, H, W, 3). Raises BadFileError."""
        assert all(0 <= index < self.frames for index in indices), "the caller asks for frames that exist"
        places = [index if self._times is None else self._times[index] for index in indices]
        wanted = set(places)
        found = self._call(self._decode, wanted, self._times is not None)
        if len(found) < len(wanted) and self._times is not None:  # the container cannot seek exactly
            found = self._call(self._decode, wanted, False)
        lost = next((i for i, place in zip(indices, places, strict=True) if place not in found), None)
        if lost is not None:
            raise BadFileError(f"cannot read {self.path}: frame {lost} of {self.frames} cannot be decoded")
        if len({picture.shape for picture in found.values()}) > 1:
            raise BadFileError(f"the frames of {self.path} change their size partway through")
        return np.stack([found[place] for place in places])

    def _decode(self, wanted: set[int], seek: bool) -> dict[int, np.ndarray]:
        found, last = {}, max(wanted)
        with video.open_container(self.path) as container:
            stream = container.streams[self._stream]
            stream.thread_type, codec = "NONE", _codec(stream)
            before = bisect_right(self._keys, min(wanted)) - 1
            if seek and before > 0:
                container.seek(self._keys[before], stream=stream)
            for number, frame in enumerate(self._decoded(container, stream)):
                time = number if self._times is None else frame.pts
                if time in wanted:
                    if frame.is_corrupt:
                        raise BadFileError(f"cannot read {self.path}: a damaged frame")
                    found[time] = self._shown(frame, codec, len(wanted))
                if time is not None and time >= last:
                    break
        return found

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        decoder = _alpha_decoder(stream) if self._clear else None
        for packet in container.demux(stream):
            if not (self._cut and packet.is_corrupt):
                yield from packet.decode() if decoder is None else decoder.decode(packet)

    def _shown(self, frame: VideoFrame, codec: str, count: int) -> np.ndarray:
        """uint8 (H, W, 3) as a player shows a decoded frame, one of `count`."""
        import av

        if self._formatter is None:  # made once: it keeps its tables
            self._formatter = av.video.reformatter.VideoReformatter()
        if frame.interlaced_frame:
            self._warn(FIELDS)
        if frame.color_trc in _HDR:
            self._warn(HDR)
        width, height = _stretched(frame.width, frame.height, self._ratio)
        video.check_clip_size(self.path, count, (width, height))
        picture = _rgb(frame, codec, height, self._formatter)
        if (width, height) != (frame.width, frame.height):
            picture = video.resize_picture(picture, width, height)
        matrix = _display_matrix(frame) or _matrix_of_tag(self._rotate)
        shown = np.ascontiguousarray(_oriented(picture, matrix))
        if not hasattr(self, "_seen"):
            usual = frame.format.name == "yuv420p" and frame.color_range != _FULL
            usual = usual and _matrix(frame, height) in (5, 6) and not matrix
            self._seen = not matrix, usual, shown.shape[:2]
        return shown

    def _warn(self, reason: str) -> None:
        warning = f"{self.path} is {reason}"
        if warning not in self.warnings:
            self.warnings.append(warning)


def evenly(times: np.ndarray, end: float, fps: float, most: int) -> tuple[np.ndarray, float]:
    """Uneven frames as a player shows them, in even steps: (indices into the frames, some
    repeated, and the frames per second of them). The rate is that of the shortest usual step where this gives
    at most `most` frames, else the mean rate `fps`."""
    rate = 1 / max(float(np.percentile(np.diff(times), 5, method="lower")), 1e-3)
    if end * rate > most:
        rate = fps
    at = np.arange(max(1, round(end * rate))) / rate
    return frames_at(times, at), rate


def frames_at(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Indices of the frames that are seen at the times `at`, in seconds from the first frame on."""
    slack = 0.01 * float(np.min(np.diff(times))) if len(times) > 1 else 0.0  # containers round to their ticks
    return np.clip(np.searchsorted(times, at + max(slack, 1e-3), side="right") - 1, 0, len(times) - 1)


def _keeps(times: np.ndarray, fps: float) -> bool:
    """True where frames at these times keep a rate, each to half a frame."""
    if not (math.isfinite(fps) and fps > 0):
        return False
    return float(np.abs(times * fps - np.arange(len(times))).max()) <= 0.5


# ---- streams -----------------------------------------------------------------------------------------------


def _candidates(container: InputContainer, path: Path) -> list[VideoStream]:
    """The streams of pictures that are no cover. Raises BadFileError without one."""
    import av

    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [one for one in container.streams.video if not one.disposition & cover]
    known = [one for one in streams if one.codec_context is not None]
    if not streams:
        beside = "sound" if container.streams.audio else ""
        beside += " and a cover picture" if beside and container.streams.video else ""
        raise BadFileError(f"{path} has no video stream" + (f", only {beside}" if beside else ""))
    if not known:
        raise BadFileError(f"{path} uses a codec that PyAV does not support")
    return known


def _shown_stream(streams: Sequence[VideoStream], found: dict[int, list[_Packet]]) -> VideoStream:
    import av

    def rank(stream) -> tuple[bool, bool, bool]:
        count, default = len(found[stream.index]), stream.disposition & av.stream.Disposition.default
        still = count == 1 and _codec(stream) in _PICTURE_CODECS
        return count == 0, still, not default

    return min(streams, key=rank)  # the first of the best


def _whole(packets: list[_Packet]) -> list[_Packet]:
    """The packets up to where the file was cut."""
    end = len(packets)
    while end and packets[end - 1].corrupt:
        end -= 1
    return packets[:end]


def _decodable(packets: Sequence[_Packet]) -> list[_Packet]:
    """The packets from the first keyframe on that are not shown before it: a recording may begin in the
    middle of a broadcast."""
    first = next((n for n, one in enumerate(packets) if one.key and one.time is not None), None)
    if first is None:
        return list(packets)
    begin = packets[first].time
    return [one for one in packets[first:] if one.time is None or one.time >= begin]


def _leads(packets: Sequence[_Packet]) -> bool:
    """True where a frame is shown before the keyframe that it follows in the file."""
    begin = -math.inf
    for packet in packets:
        begin = packet.time if packet.key else begin
        if packet.time < begin:
            return True
    return False


def _codec(stream) -> str:
    """The format's name, not the decoder's: av1, not libdav1d."""
    return stream.codec_context.codec.canonical_name


def _alpha_decoder(stream: VideoStream):
    """A decoder that sees the alpha of a webm, which FFmpeg's own pass over; None where PyAV lacks it."""
    import av

    try:
        decoder = av.CodecContext.create(_ALPHA_BESIDE[_codec(stream)], "r")
    except av.codec.codec.UnknownCodecError:
        return None
    decoder.extradata = stream.codec_context.extradata
    return decoder


def _web_ending(container: InputContainer, stream: VideoStream, path: Path) -> str:
    """ ".mp4" or ".webm" where the container, the codec and the pixel format are ones that browsers play."""
    if "mp4" in container.format.name:
        kind = "" if container.metadata.get("major_brand", "").strip() in ("", "qt") else ".mp4"
    else:
        with open(path, "rb") as file:
            kind = ".webm" if b"\x42\x82\x84webm" in file.read(64) else ""  # DocType of 4 bytes
    coded = stream.codec_context
    known = coded.pix_fmt in _WEB_CODECS.get((kind, _codec(stream)), ())
    usual = coded.profile is None or not any(part in coded.profile for part in ("10", "4:2:2", "4:4:4"))
    heard = all(sound.codec_context and _codec(sound) in _WEB_SOUND for sound in container.streams.audio)
    return kind if known and heard and (usual or _codec(stream) != "h264") else ""


# ---- place -------------------------------------------------------------------------------------------------


def _pixel_ratio(ratio: Fraction | None) -> Fraction:
    """Width to height of a pixel; 1 where it is unknown or cannot be meant."""
    if not ratio or not Fraction(1, WIDEST_PIXEL) <= ratio <= WIDEST_PIXEL:
        return Fraction(1)
    return ratio


def _stretched(width: int, height: int, ratio: Fraction) -> tuple[int, int]:
    return (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of x' = a x + c y, y' = b x + d y with y downwards; None where nothing is to be done."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype=np.int32)[:9].tolist()
            return _to_axes(a, b, c, d)
    return None


def _to_axes(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int] | None:
    """The nearest of the eight orientations."""
    if abs(a) + abs(d) >= abs(b) + abs(c):
        turned = (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    else:
        turned = (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)
    return None if turned == (1, 0, 0, 1) else turned


def _matrix_of_tag(degrees: str) -> tuple[int, int, int, int] | None:
    """The orientation of the tag `rotate`: degrees to the right."""
    try:
        turns = round(float(degrees) / 90) % 4
    except (ValueError, OverflowError):
        return None
    return [None, (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]


def _oriented(picture: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if b:  # x and y change their places
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# ---- colour ------------------------------------------------------------------------------------------------


def _matrix(frame: VideoFrame, lines: int) -> int:
    if frame.colorspace in _MATRICES:
        return frame.colorspace
    return _BT709 if lines >= HD_LINES else _BT601


def _rgb(frame: VideoFrame, codec: str, lines: int, formatter) -> np.ndarray:
    """Convert a frame of any pixel format to uint8 (h, w, 3)."""
    format = frame.format
    colours = {}
    if not (format.is_rgb or frame.colorspace == _RGB):
        full = frame.color_range == _FULL or format.name.startswith("yuvj")
        colours = {"src_colorspace": _matrix(frame, lines), "dst_colorspace": _BT601}
        colours |= {"src_color_range": _FULL if full else _LIMITED, "dst_color_range": _FULL}
    if format.name.startswith("gray"):
        limited = frame.color_range == _LIMITED or (frame.color_range != _FULL and codec in _LIMITED_GREY)
        return _grey(formatter.reformat(frame, format="gray").to_ndarray(), limited)
    if any(part.is_alpha for part in format.components) or format.name == "pal8":
        clear = formatter.reformat(frame, format="rgba", interpolation=_EXACT, **colours)
        return video.on_white(clear.to_ndarray())
    frame = _with_colour_everywhere(frame)
    return formatter.reformat(frame, format=_PLANES, interpolation=_EXACT, **colours).to_ndarray()


def _with_colour_everywhere(frame: VideoFrame) -> VideoFrame:
    """The frame with a colour sample for every pixel, each repeated, as Chromium does without a GPU. Of
    interpolated ones some bleeds over edges: in small clips the flow takes it for motion."""
    from av import VideoFrame

    found = re.fullmatch(r"yuvj?(420|422|440|411|410)p(1[0-6]le)?", frame.format.name)
    if found is None:
        return frame
    full = VideoFrame(frame.width, frame.height, f"yuv444p{found[2] or ''}")
    sparse = {"420": (2, 2), "422": (1, 2), "440": (2, 1), "411": (1, 4), "410": (4, 4)}[found[1]]
    for number, (thin, plane) in enumerate(zip(frame.planes, full.planes, strict=True)):
        there, wanted = _samples(thin, found[2]), _samples(plane, found[2])
        down, across = sparse if number else (1, 1)
        wanted[:] = there.repeat(down, 0).repeat(across, 1)[: len(wanted), : wanted.shape[1]]
    return full


def _samples(plane, wide: str | None) -> np.ndarray:
    """A view of a plane's numbers, (height, width)."""
    rows = np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, -1)
    return rows.view("<u2" if wide else np.uint8)[:, : plane.width]


def _grey(picture: np.ndarray, limited: bool) -> np.ndarray:
    """swscale takes grey for full range, whatever it is tagged with."""
    if limited:
        picture = np.round((picture.astype(np.float32) - 16) * (255 / 219)).clip(0, 255).astype(np.uint8)
    return picture[..., None].repeat(3, axis=-1)
