// A demo's states were drawn beforehand: a control picks one, and what differs from the first picture is laid over it.
for (const demo of document.querySelectorAll(".demo")) {
  const { title, controls, states, layers, ends } = JSON.parse(demo.querySelector("script").textContent)
  const knobs = [...demo.querySelectorAll("input, select")], said = demo.querySelector("[role=status]")
  const [base, over] = demo.querySelectorAll("img")
  let now = 0

  const show = () => {
    const { at, reading, layer } = states[now]
    const texts = controls.map((control, i) => control.stops[at[i]])
    knobs.forEach((knob, i) => {
      knob.value = at[i]
      if (controls[i].menu) return
      knob.setAttribute("aria-valuetext", texts[i])
      knob.nextElementSibling.textContent = texts[i]
    })
    const settings = controls.map((control, i) => `${control.label} = ${texts[i]}`).join(", ")
    base.alt = [title, settings, reading].filter(Boolean).join(". ")
    said.textContent = reading
    over.hidden = layer === null
    if (over.hidden) return
    const [left, top, width, height, picture] = layers[layer]
    Object.assign(over.style, { left: left + "%", top: top + "%", width: width + "%", height: height + "%" })
    over.src = "data:image/webp;base64," + picture
  }

  const moved = (which, to) => {
    const wanted = states[now].at.map((value, i) => (i === which ? to : value))
    const skipped = controls.slice(0, which).reduce((sum, control) => sum + control.stops.length, 0)
    now = ends ? ends[now][skipped + to] : states.findIndex(state => String(state.at) === String(wanted))
    show()
  }

  knobs.forEach((knob, i) => {
    knob.disabled = false
    knob.oninput = () => moved(i, Number(knob.value))
  })
  show()
}
