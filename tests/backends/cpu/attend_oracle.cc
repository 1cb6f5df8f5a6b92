#include "tests/backends/cpu/attend_oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "src/codecs/codebook.h"

namespace kvrazor::test {
namespace {

constexpr double kUnit = 0x1p-24;
double Gamma(double n) { return n * kUnit / (1 - n * kUnit); }
constexpr double kOperandError = 1.01 / 65024;  // half a step of 1 / 32512, and the f32 product before it
constexpr double kNone = -std::numeric_limits<double>::infinity();

double F16At(const std::byte* p, int64_t index) {
  f16_bits h;
  std::memcpy(&h, p + 2 * index, 2);
  return F32FromF16(h);
}

double E5M3(uint8_t b) {
  const int exponent = b >> 3;
  const double mantissa = (b & 7) / 8.0;
  return exponent == 0 ? std::ldexp(mantissa, -14) : std::ldexp(1 + mantissa, exponent - 15);
}

double E3M5(uint8_t b, double base) { return b == 0 ? 0.0 : base * std::ldexp(1 + (b & 31) / 32.0, (b >> 5) - 7); }

/// Sylvester Hadamard / sqrt(n), entry by entry.
std::vector<double> Rotate(const std::vector<double>& x) {
  const size_t n = x.size();
  std::vector<double> y(n);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) y[i] += (std::popcount(i & j) & 1) ? -x[j] : x[j];
    y[i] /= std::sqrt(static_cast<double>(n));
  }
  return y;
}

/// One head of a sealed page.
struct Head {
  const PageLayout& l;
  const std::byte* page;
  int head;

  const std::byte* block() const { return page + l.heads_at + head * l.head_bytes; }
  int dim() const { return l.shape.head_dim; }
  double half() const { return ((1 << l.recipe.bits) - 1) / 2.0; }
  /// Codebooks: steps and middle in place of codes and half.
  int Step(int token, int channel) const {
    return GaussianCodebook(l.recipe.bits).steps[static_cast<size_t>(Code(token, channel))];
  }
  double middle() const { return GaussianCodebook(l.recipe.bits).middle; }

  int Code(int token, int channel) const {
    const int lane = l.side == Side::kKey ? token : channel;
    const int k = l.side == Side::kKey ? channel : token;
    const int num_k = l.side == Side::kKey ? dim() : kPageTokens;
    const auto field = [&](int64_t at, int bits) {
      const int k_per_row = 32 / bits;
      const int64_t row = int64_t{lane / 16} * (num_k / k_per_row) + k / k_per_row;
      const int in_row = k % k_per_row;
      const auto byte = static_cast<uint8_t>(block()[at + row * 64 + (lane % 16) * 4 + in_row % 4]);
      return (byte >> (bits * (in_row / 4))) & ((1 << bits) - 1);
    };
    if (l.recipe.bits == 3) return field(l.codes_at, 2) + 4 * field(l.high_codes_at, 1);
    return field(l.codes_at, l.recipe.bits);
  }

  int64_t Group(int token, int channel) const {
    const int g = l.recipe.group_size;
    return l.recipe.axis == Axis::kPerChannel ? int64_t{token / g} * dim() + channel
                                              : int64_t{channel / g} * kPageTokens + token;
  }
  double Scale(int token, int channel) const { return F16At(block() + l.scale_at, Group(token, channel)); }
  double Offset(int token, int channel) const { return F16At(block() + l.offset_at, Group(token, channel)); }
  uint8_t Byte(int64_t at, int i) const { return static_cast<uint8_t>(block()[at + i]); }
  /// Razor values: index of the parameters of a channel that hold for a token.
  int Shared(int token, int channel) const {
    return token / (l.recipe.group_size > 0 ? l.recipe.group_size : kPageTokens) * dim() + channel;
  }
};

double Largest(const std::vector<double>& x) {
  double top = 0;
  for (double v : x) top = std::max(top, std::abs(v));
  return top;
}

/// q.k of one token of a sealed page; q in the basis of the page, each element off by at most q_error.
Bounded SealedLogit(const Head& h, const std::vector<double>& q, double q_error, int t) {
  const int dim = h.dim();
  double value = 0, magnitude = 0, rounded = 0, spread = 0;
  if (h.l.recipe.codec == Codec::kRazorKey) {
    float scalars[2];
    std::memcpy(scalars, h.page + h.l.head_scalars_at + 8 * h.head, 8);
    const double s = E3M5(h.Byte(h.l.scale_at, t), scalars[1]);
    const double share = h.l.recipe.rank_one_mean ? F16At(h.block() + h.l.mean_factor_at, t) : 1.0;
    const double top = Largest(q);
    for (int c = 0; c < dim; ++c) {
      int16_t mean;
      std::memcpy(&mean, h.block() + h.l.mean_at + 2 * c, 2);
      const double m = share * mean * static_cast<double>(scalars[0]);
      value += q[c] * (m + s * (h.Code(t, c) - h.half()));
      const double size = std::abs(m) + s * (h.Code(t, c) + h.half());
      magnitude += std::abs(q[c]) * size;
      spread += size;
      rounded += top * s * (h.Code(t, c) + h.half());
    }
  } else if (h.l.recipe.codec == Codec::kCodebook) {
    const double n = F16At(h.block() + h.l.norm_at, t);
    const double top = Largest(q);
    for (int c = 0; c < dim; ++c) {
      value += q[c] * n * (h.Step(t, c) - h.middle());
      const double size = n * (h.Step(t, c) + h.middle());
      magnitude += std::abs(q[c]) * size;
      spread += size;
      rounded += top * size;
    }
  } else {
    std::vector<double> scaled(dim);
    for (int c = 0; c < dim; ++c) scaled[c] = h.l.recipe.axis == Axis::kPerChannel ? q[c] * h.Scale(t, c) : q[c];
    const double top = Largest(scaled);
    for (int c = 0; c < dim; ++c) {
      const double s = h.Scale(t, c), o = h.Offset(t, c);
      value += q[c] * (s * h.Code(t, c) + o);
      const double size = std::abs(s) * h.Code(t, c) + std::abs(o);
      magnitude += std::abs(q[c]) * size;
      spread += size;
      rounded += top * (h.l.recipe.axis == Axis::kPerChannel ? 1.0 : std::abs(s)) * h.Code(t, c);
    }
  }
  double factor = 1;
  if (h.l.token_scale_at >= 0) factor = F16At(h.page + h.l.token_scale_at, t);
  return {factor * value, factor * (Gamma(dim + 8) * magnitude + q_error * spread + kOperandError * rounded)};
}

/// Adds sum_t p[t] * v[t][c] of a sealed page. Weights p [128], exact tokens 0.
void AddSealedValues(const Head& h, const std::vector<double>& p, std::vector<Bounded>& out) {
  for (int c = 0; c < h.dim(); ++c) {
    double value = 0, magnitude = 0, rounded = 0;
    std::vector<double> operand(kPageTokens);
    const bool razor = h.l.recipe.codec == Codec::kRazorValue;
    const bool book = h.l.recipe.codec == Codec::kCodebook;
    for (int t = 0; t < kPageTokens; ++t) {
      operand[t] = p[t] * (book                                 ? F16At(h.block() + h.l.norm_at, t)
                           : razor                              ? E5M3(h.Byte(h.l.norm_at, t))
                           : h.l.recipe.axis == Axis::kPerToken ? h.Scale(t, c)
                                                                : 1.0);
    }
    const double top = Largest(operand);
    for (int t = 0; t < kPageTokens; ++t) {
      const int code = h.Code(t, c);
      if (razor) {
        const double s = E5M3(h.Byte(h.l.scale_at, h.Shared(t, c)));
        const double centre = static_cast<int8_t>(h.Byte(h.l.centre_at, h.Shared(t, c))) / 8.0;
        value += operand[t] * s * (code - h.half() + centre);
        magnitude += operand[t] * s * (code + h.half() + std::abs(centre));
        rounded += top * s * (code + h.half() + std::abs(centre));
      } else if (book) {
        const double size = h.Step(t, c) + h.middle();
        value += operand[t] * (h.Step(t, c) - h.middle());
        magnitude += operand[t] * size;
        rounded += top * size;
      } else {
        const double s = h.Scale(t, c), o = h.Offset(t, c);
        value += p[t] * (s * code + o);
        magnitude += p[t] * (std::abs(s) * code + std::abs(o));
        rounded += top * code * (h.l.recipe.axis == Axis::kPerToken ? 1.0 : std::abs(s));
      }
    }
    out[c].value += value;
    out[c].error += Gamma(kPageTokens + 8) * magnitude + kOperandError * rounded;
  }
}

struct Weighted {
  double logit = kNone;
  double error = 0;
};

double MaskedLogit(const AttendArgs& a, double x, int64_t key, int i, int head) {
  if (a.logit_softcap > 0) x = a.logit_softcap * std::tanh(x / a.logit_softcap);
  if (!a.mask) return key <= a.causal_base + i ? x : kNone;
  const double m = F32FromF16(a.mask[i * a.mask_stride + key]);
  if (std::isinf(m) && m < 0) return kNone;
  return x + (a.alibi_slopes ? a.alibi_slopes[head] : 1.0) * m;
}

class RowOracle {
 public:
  RowOracle(const AttendArgs& args, int token, int head)
      : a_(args),
        token_(token),
        head_(head),
        kv_head_(head / (args.num_qo_heads / args.format->k.shape.num_kv_heads)) {}

  void Compute(Bounded* out, Bounded& lse) {
    Logits();
    const double sink = a_.sink_logits ? a_.sink_logits[head_] : kNone;
    double top = sink;
    for (const Weighted& w : logits_) top = std::max(top, w.logit);
    const int dim = a_.format->v.shape.head_dim;
    if (top == kNone) {
      for (int c = 0; c < dim; ++c) out[c] = {};
      lse = {kNone, 0};
      return;
    }
    double sum = sink == kNone ? 0 : std::exp(sink - top);
    double worst = Gamma(2.0 * std::abs(sink == kNone ? 0 : sink) + 8);
    for (const Weighted& w : logits_) {
      if (w.logit == kNone) continue;
      sum += std::exp(w.logit - top);
      // The weight's own error: that of the logit, its f32 steps (scale, softcap, mask, base 2, subtraction), 2^x.
      worst = std::max(worst, w.error + Gamma(8) * (std::abs(w.logit) + std::abs(top)) + 16 * kUnit);
    }
    const double n = static_cast<double>(logits_.size());
    const double relative =
        std::expm1(worst) + Gamma(32) + Gamma(n / 8 + 64);  // sums run over vectors, pages and splits
    lse = {top + std::log(sum), relative + Gamma(16) * (std::abs(top) + std::abs(std::log(sum)) + 1)};
    Values(top, sum, relative, out);
  }

 private:
  void Logits() {
    const PageLayout& l = a_.format->k;
    const int dim = l.shape.head_dim;
    std::vector<double> q(dim);
    double size = 0;
    for (int c = 0; c < dim; ++c) {
      q[c] = a_.q.data[token_ * a_.q.token_stride + head_ * a_.q.head_stride + c];
      size += std::abs(q[c]);
    }
    std::vector<double> sealed_q = q;
    double q_error = 0;
    if (l.recipe.rotate) {
      sealed_q = Rotate(q);
      q_error = Gamma(12) * size / std::sqrt(static_cast<double>(dim));
    }
    for (const AttendPage& page : a_.pages) {
      int exact = 0;
      for (int t = 0; t < page.num_tokens; ++t) {
        Bounded x;
        const f16_bits* row = nullptr;
        if (page.k.rows) row = page.k.rows + t * l.row_values() + kv_head_ * dim;
        if (page.k.sealed && page.k.exact.Test(t)) row = page.k.exact_rows + exact++ * l.row_values() + kv_head_ * dim;
        if (row) {
          double magnitude = 0;
          for (int c = 0; c < dim; ++c) {
            x.value += q[c] * F32FromF16(row[c]);
            magnitude += std::abs(q[c] * F32FromF16(row[c]));
          }
          x.error = Gamma(dim + 2) * magnitude;
        } else {
          x = SealedLogit({l, page.k.sealed, kv_head_}, sealed_q, q_error, t);
        }
        const double scale = a_.softmax_scale;
        const double cap =
            a_.logit_softcap;  // 1 - (1 - e) / (1 + e) loses the relative error near 0: 8 units of the cap
        logits_.push_back({MaskedLogit(a_, scale * x.value, page.first_key + t, token_, head_),
                           std::abs(scale) * x.error + Gamma(4) * std::abs(scale * x.value) + 8 * kUnit * cap});
      }
    }
  }

  void Values(double top, double sum, double relative, Bounded* out) {
    const PageLayout& l = a_.format->v;
    const int dim = l.shape.head_dim;
    std::vector<Bounded> plain(dim), sealed(dim);
    size_t at = 0;
    for (const AttendPage& page : a_.pages) {
      int exact = 0;
      std::vector<double> p(kPageTokens);
      bool any = false;
      for (int t = 0; t < page.num_tokens; ++t, ++at) {
        const double logit = logits_[at].logit;
        const double weight = logit == kNone ? 0 : std::exp(logit - top) / sum;
        const f16_bits* row = nullptr;
        if (page.v.rows) row = page.v.rows + t * l.row_values() + kv_head_ * dim;
        if (page.v.sealed && page.v.exact.Test(t)) row = page.v.exact_rows + exact++ * l.row_values() + kv_head_ * dim;
        if (!row) {
          p[t] = weight;
          any = any || weight > 0;
          continue;
        }
        for (int c = 0; c < dim && weight > 0; ++c) {
          plain[c].value += weight * F32FromF16(row[c]);
          plain[c].error += relative * weight * std::abs(F32FromF16(row[c]));
        }
      }
      if (!any) continue;
      const Head head{l, page.v.sealed, kv_head_};
      std::vector<Bounded> part(dim);
      AddSealedValues(head, p, part);
      for (int c = 0; c < dim; ++c) {
        double magnitude = 0;
        for (int t = 0; t < kPageTokens; ++t) {
          if (p[t] == 0) continue;
          if (l.recipe.codec == Codec::kRazorValue) {
            const double centre = static_cast<int8_t>(head.Byte(l.centre_at, head.Shared(t, c))) / 8.0;
            magnitude += p[t] * E5M3(head.Byte(l.norm_at, t)) * E5M3(head.Byte(l.scale_at, head.Shared(t, c))) *
                         (head.Code(t, c) + head.half() + std::abs(centre));
          } else if (l.recipe.codec == Codec::kCodebook) {
            magnitude += p[t] * F16At(head.block() + l.norm_at, t) * (head.Step(t, c) + head.middle());
          } else {
            magnitude += p[t] * (std::abs(head.Scale(t, c)) * head.Code(t, c) + std::abs(head.Offset(t, c)));
          }
        }
        sealed[c].value += part[c].value;
        sealed[c].error += part[c].error + relative * magnitude;
      }
    }
    std::vector<double> rotated(dim);
    double error = 0, size = 0;
    for (int c = 0; c < dim; ++c) {
      rotated[c] = sealed[c].value;
      error += sealed[c].error;
      size += std::abs(sealed[c].value) + std::abs(plain[c].value);
    }
    if (l.recipe.rotate) {
      rotated = Rotate(rotated);
      double plain_error = 0;
      for (int c = 0; c < dim; ++c) plain_error = std::max(plain_error, plain[c].error);
      // Rotating an error vector: at most its 1-norm / sqrt(dim); the plain part is rotated there and back.
      const double root = std::sqrt(static_cast<double>(dim));
      error = error / root + Gamma(24) * (size / root + size) + plain_error * root;
    }
    for (int c = 0; c < dim; ++c) {
      out[c].value = plain[c].value + rotated[c];
      out[c].error =
          plain[c].error + (l.recipe.rotate ? error : sealed[c].error + Gamma(16) * std::abs(sealed[c].value));
    }
  }

  const AttendArgs& a_;
  int token_, head_, kv_head_;
  std::vector<Weighted> logits_;
};

}  // namespace

OracleResult OracleAttend(const AttendArgs& args) {
  OracleResult result;
  const int dim = args.format->v.shape.head_dim;
  result.out.resize(static_cast<size_t>(args.qo_len) * args.num_qo_heads * dim);
  result.lse.resize(static_cast<size_t>(args.qo_len) * args.num_qo_heads);
  for (int i = 0; i < args.qo_len; ++i) {
    for (int h = 0; h < args.num_qo_heads; ++h) {
      const size_t row = static_cast<size_t>(i) * args.num_qo_heads + h;
      RowOracle(args, i, h).Compute(result.out.data() + row * dim, result.lse[row]);
    }
  }
  return result;
}

}  // namespace kvrazor::test
