// One clock for all clips. Videos near the screen follow it: playing they run by themselves and are put right
// when they drift by a frame, standing they show the middle of the clock's frame.

const HOLD = 0.4; // seconds that the last frame stays before all start again

function makePlayer(cells, changed) {
  const rate = Math.max(1, ...cells.map((cell) => cell.fps));
  const seconds = Math.max(1 / rate, ...cells.map((cell) => cell.n / cell.fps));
  const frames = Math.max(1, Math.round(seconds * rate));
  const videos = new Map(); // video -> its cell
  let time = 0, playing = false, speed = 1, before = 0;

  const frame = () => Math.min(frames - 1, Math.floor(time * rate + 1e-6));

  function follow(video, cell, jump) {
    if (video.readyState < 1) return;
    const end = cell.n / cell.fps;
    if (playing && time < end) {
      video.playbackRate = speed;
      if (video.paused) video.play().catch(() => {});
      const off = Math.abs(video.currentTime - time) * cell.fps;
      if (jump || (off > 1 && !video.seeking)) video.currentTime = time;
    } else {
      if (!video.paused) video.pause();
      const index = Math.min(cell.n - 1, Math.floor(time * cell.fps + 1e-6));
      const at = (index + 0.5) / cell.fps;
      if (!video.seeking && Math.abs(video.currentTime - at) * cell.fps > 0.3) video.currentTime = at;
    }
  }

  function show(jump = false) {
    for (const [video, cell] of videos) follow(video, cell, jump);
    changed({ time, frame: frame(), frames, seconds, playing });
  }

  function tick(now) {
    if (!playing) return;
    time += (Math.min(250, now - before) / 1000) * speed;
    before = now;
    const again = time >= seconds + HOLD;
    if (again) time = 0;
    show(again);
    requestAnimationFrame(tick);
  }

  return {
    seconds, frames,
    add(video, cell) {
      videos.set(video, cell);
      for (const event of ["loadedmetadata", "seeked"]) video.addEventListener(event, () => videos.has(video) && follow(video, cell, false));
    },
    remove(video) { videos.delete(video); },
    get state() { return { time, frame: frame(), frames, playing, videos: videos.size }; },
    play(on = !playing) {
      if (on === playing) return;
      playing = on;
      if (on && time >= seconds) time = 0;
      before = performance.now();
      show(on);
      if (on) requestAnimationFrame(tick);
    },
    /** Stop at a frame of the clock. */
    seek(index) {
      playing = false;
      time = (Math.max(0, Math.min(frames - 1, index)) + 0.5) / rate;
      show();
    },
    speed(value) { speed = value; show(); },
  };
}

/** The bar at the foot of the page and the keys: space, arrows, home, end. */
function makeBar(player) {
  const bar = Object.fromEntries(["back", "play", "next", "scrub", "frame", "speed"].map((id) => [id, document.getElementById(id)]));
  const icon = (...shapes) => svg("svg", { viewBox: "0 0 24 24", width: 20, height: 20, "aria-hidden": "true" }, ...shapes.map((d) => svg("path", { d })));
  const icons = { play: icon("M7 4.5v15l13-7.5z"), pause: icon("M6 4.5h4v15H6z", "M14 4.5h4v15h-4z") };
  bar.back.append(icon("M18 5v14l-9.5-7z", "M5 5h2.5v14H5z"));
  bar.next.append(icon("M6 5v14l9.5-7z", "M16.5 5H19v14h-2.5z"));
  bar.scrub.max = player.frames - 1;

  const act = {
    " ": () => player.play(),
    ArrowLeft: () => player.seek(player.state.frame - 1),
    ArrowRight: () => player.seek(player.state.frame + 1),
    Home: () => player.seek(0),
    End: () => player.seek(player.frames - 1),
  };
  bar.play.addEventListener("click", act[" "]);
  bar.back.addEventListener("click", act.ArrowLeft);
  bar.next.addEventListener("click", act.ArrowRight);
  bar.scrub.addEventListener("input", () => player.seek(Number(bar.scrub.value)));
  bar.speed.addEventListener("change", () => player.speed(Number(bar.speed.value)));

  document.addEventListener("keydown", (event) => {
    const on = event.target, own = on.closest?.("input:not(#scrub), select, textarea");
    const pressed = event.key === " " && on.closest?.("button, a, summary") && on !== bar.play;
    if (!act[event.key] || event.ctrlKey || event.metaKey || event.altKey || own || pressed) return;
    event.preventDefault();
    act[event.key]();
  });
  document.addEventListener("keyup", (event) => { // space on the play button: done on its way down
    if (event.key === " " && event.target === bar.play) event.preventDefault();
  });
  document.addEventListener("click", (event) => { // a click by pointer leaves the keys with the player
    if (event.detail) event.target.closest?.("button, a, summary")?.blur();
  });

  return ({ frame, frames, playing }) => {
    bar.scrub.value = frame;
    bar.scrub.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    bar.frame.textContent = `${frame + 1} / ${frames}`;
    const name = playing ? "Pause (space)" : "Play (space)";
    if (bar.play.getAttribute("aria-label") !== name || !bar.play.firstChild) {
      bar.play.setAttribute("aria-label", name);
      bar.play.replaceChildren(playing ? icons.pause : icons.play);
    }
  };
}
