# Output is streamed as it is written, with or without a newline.
import time

print("hello from a fresh sandbox")
for word in ("one,", " two,", " three"):
    print(word, end="")
    time.sleep(0.25)
