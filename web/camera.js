// A picture from the webcam. The first click shows what the camera sees, the second takes the picture and switches the
// camera off; `take` gets it as a file. Where the browser lends no camera (an address that is not secure), the button
// stays hidden.
export function camera(button, take) {
  if (!navigator.mediaDevices?.getUserMedia) return
  const label = button.textContent
  let video = null
  const begin = async () => {
    const view = document.createElement('video')
    view.srcObject = await navigator.mediaDevices.getUserMedia({video: true})
    Object.assign(view, {muted: true, playsInline: true, width: 160})
    view.setAttribute('aria-label', 'what the camera sees')
    button.after(view)
    await view.play()
    video = view
    button.textContent = 'Take the picture'
  }
  const end = () => {
    const shot = Object.assign(document.createElement('canvas'), {width: video.videoWidth, height: video.videoHeight})
    shot.getContext('2d').drawImage(video, 0, 0)
    for (const track of video.srcObject.getTracks()) track.stop()
    video.remove()
    video = null
    button.textContent = label
    shot.toBlob(blob => take(new File([blob], 'webcam.png', {type: 'image/png'})))
  }
  button.hidden = false
  button.onclick = async () => {
    button.disabled = true
    try { video ? end() : await begin() } catch { button.textContent = 'No camera' }
    button.disabled = false
  }
}
