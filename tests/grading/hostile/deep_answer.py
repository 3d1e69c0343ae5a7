# Answers with lists in lists.
# expected: error
def f(x):
    answer = []
    for _ in range(100_000):
        answer = [answer]
    return answer
