"""Colors a photograph, faithful and vivid, and puts all beside each other.

python color_a_photo.py photo.jpg
"""

import sys

from PIL import Image, ImageOps

from hpc_recolor import Colorizer

photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
faithful, vivid = (Colorizer.load(vividness=vividness)(photo) for vividness in (1.0, 1.6))

pictures = (photo.convert("L"), faithful, vivid)
table = Image.new("RGB", (len(pictures) * photo.width, photo.height))
for number, picture in enumerate(pictures):
    table.paste(picture, (number * photo.width, 0))
table.save("colored.png")
print("colored.png: gray, faithful, vivid")
