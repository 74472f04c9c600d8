// What the parts of the page tell each other, so that none has to know the others:
//
//   play {videoId, start, end, n, cue, quiet}   show a moment; `cue` does not start it, `quiet` keeps the focus
//   player-closed                               the player has been closed
//   at {videoId, seconds}                       where the player is
//   ask {question, image}                       a new conversation
//   scope {kind: "video"|"clip", ...}           questions and searches are about this alone, or null
//   filters                                     the filters or the scope have changed
//   heat [row]                                  a search has found these relevances over time
//   home                                        leave the results for the library
//   library                                     another library has been chosen
//   videos                                      videos came or went
//   deleted id                                  this one went
//   image file                                  search with this picture
//   upload [file]                               add these videos
//   edited                                      the query was typed in

const target = new EventTarget();

export const emit = (name, detail) => target.dispatchEvent(new CustomEvent(name, { detail }));
export const on = (name, heard) => target.addEventListener(name, (event) => heard(event.detail));
