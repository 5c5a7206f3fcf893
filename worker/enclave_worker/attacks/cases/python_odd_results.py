# attempts: results whose looking-at runs code: lying containers, subclasses, self-reference, numbers JSON has no word for
# layer: encoding inside the sandbox; checked outside
# category: python level
# outcomes: RESULT_NOT_SERIALIZABLE
# evidence: made
# host: unchanged
held("made")


class Text(str):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1

    def encode(self, *a):
        return b'{"type":"final"}'


class Mapping(dict):
    def items(self):
        return [(Text("a"), float("nan")), (Text("a"), 1), (object(), 2)]

    def __iter__(self):
        return iter(range(10**12))

    def __len__(self):
        return -1


class Sequence(list):
    def __iter__(self):
        while True:
            yield Mapping()


loop = []
loop.append(loop)
return [Mapping(a=1), Text("\ud800"), float("inf"), 10**5000, loop, Sequence([1])]
