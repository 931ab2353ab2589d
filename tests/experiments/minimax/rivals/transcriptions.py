"""The rivals written out in NumPy, nodes as rows; each returns x and y of all nodes after a run."""

from __future__ import annotations

import numpy as np


def column(values):
    """[n] -> [n, 1]."""
    return np.asarray(values)[:, None]


def sgda(problem, w, x, y, steps, gamma_x, gamma_y, project):
    for k in range(steps):
        gx, gy = problem(x, y, k)
        x, y = w @ (x - gamma_x * gx), project(w @ (y + gamma_y * gy))
    return x, y


def adagrad(problem, w, x, y, steps, gamma_x, gamma_y, project, start):
    mx = my = np.full(len(x), start)
    for k in range(steps):
        gx, gy = problem(x, y, k)
        mx, my = mx + (gx**2).sum(1), my + (gy**2).sum(1)
        x = w @ (x - gamma_x * gx / column(np.sqrt(mx)))
        y = project(w @ (y + gamma_y * gy / column(np.sqrt(my))))
    return x, y


def tiada(problem, w, x, y, steps, gamma_x, gamma_y, project, start, alpha, beta):
    mx = my = np.full(len(x), start)
    for k in range(steps):
        gx, gy = problem(x, y, k)
        mx, my = mx + (gx**2).sum(1), my + (gy**2).sum(1)
        # The ratio as TiAda's paper writes it.
        ratio = mx**alpha / np.maximum(mx**alpha, my**alpha)
        x = w @ (x - gamma_x * gx * column(ratio / mx**alpha))
        y = project(w @ (y + gamma_y * gy / column(my**beta)))
    return x, y


def neada(problem, w, x, y, steps, gamma_x, gamma_y, project, start):
    mx = my = np.full(len(x), start)
    k = round_ = 0
    while True:
        for _ in range(round_ + 1):
            if k == steps:
                return x, y
            _, gy = problem(x, y, k)
            my = my + (gy**2).sum(1)
            x, y = w @ x, project(w @ (y + gamma_y * gy / column(np.sqrt(my))))
            k += 1
        if k == steps:
            return x, y
        gx, _ = problem(x, y, k)
        mx = mx + (gx**2).sum(1)
        x, y = w @ (x - gamma_x * gx / column(np.sqrt(mx))), project(w @ y)
        k += 1
        round_ += 1


def gt(problem, w, x, y, steps, gamma_x, gamma_y, project):
    gx, gy = problem(x, y, 0)
    sx, sy = gx, gy
    for k in range(steps):
        x, y = w @ (x - gamma_x * sx), project(w @ (y + gamma_y * sy))
        new_x, new_y = problem(x, y, k + 1)
        sx, sy = w @ sx + new_x - gx, w @ sy + new_y - gy
        gx, gy = new_x, new_y
    return x, y


def hsgd(problem, w, x, y, steps, gamma_x, gamma_y, project, weight_x, weight_y):
    vx, vy = problem(x, y, 0)
    sx, sy = vx, vy
    for k in range(steps):
        old_x, old_y = x, y
        x, y = w @ (x - gamma_x * sx), project(w @ (y + gamma_y * sy))
        gx, gy = problem(x, y, k + 1)
        at_old_x, at_old_y = problem(old_x, old_y, k + 1)
        new_x = gx + (1 - weight_x) * (vx - at_old_x)
        new_y = gy + (1 - weight_y) * (vy - at_old_y)
        sx, sy = w @ sx + new_x - vx, w @ sy + new_y - vy
        vx, vy = new_x, new_y
    return x, y


def adast_coordinates(problem, w, x, y, steps, gamma_x, gamma_y, project, start, alpha, beta):
    mx, my = np.full(x.shape, start), np.full(y.shape, start)
    for k in range(steps):
        gx, gy = problem(x, y, k)
        hx, hy = mx + gx**2, my + gy**2
        total_x, total_y = hx.sum(1) ** alpha, hy.sum(1) ** alpha
        psi = column(total_x / np.maximum(total_x, total_y))
        x = w @ (x - gamma_x * psi * gx / hx**alpha)
        y = project(w @ (y + gamma_y * gy / hy**beta))
        mx, my = w @ hx, w @ hy
    return x, y
