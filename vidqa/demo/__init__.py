"""The playground: a small closed world with exact truth, and two tiny models that know it.

    world.py      what can be in a film, and films drawn at random from a seed
    draw.py       a scene at a moment in time -> a picture
    films.py      a film -> mp4, subtitles and its truth as JSON
    questions.py  a library of films -> questions with answers and the spans that answer them

Nothing here is used unless asked for: it exists so that the whole system can be tried and
measured where no model hub can be reached.
"""
