"use strict";
// Everything works on what the page holds; text from runs is only ever set as text.

// What a pointer is told: the nearest column of values, at a line across the chart.
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("svg[data-tip]")) {
  const columns = JSON.parse(chart.dataset.tip), cross = chart.querySelector(".cross");
  chart.addEventListener("pointermove", event => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    const [at, title, rows] = columns.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    cross.style.visibility = "visible";
    const head = document.createElement("b");
    head.textContent = title;
    tip.replaceChildren(head, ...rows.slice(0, 14).map(([style, name, text]) => {
      const row = document.createElement("span"), dot = document.createElement("i");
      dot.className = style.split(" ")[0];
      row.append(dot, `${name} `, text);
      return row;
    }));
    tip.hidden = false;
    const right = event.clientX + 18 + tip.offsetWidth > innerWidth;
    tip.style.left = `${right ? Math.max(4, event.clientX - 18 - tip.offsetWidth) : event.clientX + 18}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4))}px`;
  });
  chart.addEventListener("pointerleave", () => {
    cross.style.visibility = "hidden";
    tip.hidden = true;
  });
}

// Films: a slider over the checkpoints of one run, or of two that are shown one above the other.
for (const viewer of document.querySelectorAll(".viewer")) {
  const runs = JSON.parse(viewer.querySelector("script").textContent);
  const [run, other, kind] = ["run", "other", "kind"].map(name => viewer.querySelector(`select.${name}`));
  const slider = viewer.querySelector("input.age"), said = viewer.querySelector("output");
  const screens = viewer.querySelectorAll(".screen");
  const button = viewer.querySelector("button"), time = viewer.querySelector("input.time");
  let stopped = matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (const select of [run, other]) {
    if (select === other) select.add(new Option("none", ""));
    runs.forEach((r, i) => select.add(new Option(r.run, i)));
  }
  const before = (a, b) => a.at[0] - b.at[0] || a.at[1] - b.at[1];
  const chosen = () => [run.value, other.value].map(i =>
    i === "" ? [] : runs[i].films.filter(film => film.kind === kind.value).sort(before));
  const moments = () => {
    const all = chosen().flat().sort(before);
    return all.filter((film, i) => i === 0 || before(all[i - 1], film));
  };
  const show = () => {
    const moment = moments()[slider.value];
    said.textContent = moment ? moment.about.split(", PSNR")[0] : "no film of this kind";
    chosen().forEach((films, i) => {
      const film = moment && films.filter(f => before(f, moment) <= 0).pop();
      if (!film) return screens[i].replaceChildren();
      if (screens[i].dataset.film === film.source && screens[i].children.length) return;
      screens[i].dataset.film = film.source;
      const label = document.createElement("p");
      label.textContent = `${runs[[run.value, other.value][i]].run} · ${film.about}`;
      const gif = /^data:image|\.gif$/.test(film.source.slice(-4) === ".gif" ? ".gif" : film.source.slice(0, 10));
      const screen = document.createElement(gif ? "img" : "video");
      if (!gif) Object.assign(screen, {loop: true, muted: true, autoplay: !stopped, playsInline: true});
      screen.src = film.source;
      screens[i].replaceChildren(label, screen);
    });
  };
  const restart = () => {
    slider.max = Math.max(0, moments().length - 1);
    slider.value = slider.max;
    slider.disabled = slider.max < 1;
    screens.forEach(screen => screen.replaceChildren());
    show();
  };
  for (const select of [run, other, kind]) select.addEventListener("change", restart);
  slider.addEventListener("input", show);

  // One button and one time for both films; they lie below them, so that nothing covers the pictures.
  const videos = () => [...viewer.querySelectorAll("video")];
  const turn = stop => {
    stopped = stop;
    button.textContent = stopped ? "play" : "pause";
    for (const video of videos()) stopped ? video.pause() : video.play();
  };
  button.addEventListener("click", () => turn(!stopped));
  time.addEventListener("input", () => {
    turn(true);
    for (const video of videos()) video.currentTime = time.value * video.duration;
  });
  viewer.addEventListener("timeupdate", event => { // does not bubble, so it is caught on its way down
    const video = event.target;
    if (video === videos()[0] && !stopped && video.duration) time.value = video.currentTime / video.duration;
  }, true);
  turn(stopped);
  restart();
}
