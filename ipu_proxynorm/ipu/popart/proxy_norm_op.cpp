// Group Norm, affine, activation and Proxy Norm as one operator of PopART, with its gradient.
//
//     out = (activation(norm(x) * weight + bias) + shift) * scale
//
// Two passes over x each way: statistics, then everything else. For the backward pass x alone is
// kept; statistics and pre-activation are computed again from it.
//
// NEVER COMPILED, and never run: written on a machine without the SDK. Syntax and types were checked
// against the headers of PopART and Poplibs 3.4, with stand-ins for Poplar's. Build with `make` (see docs/norm.md), and compare with the plain operators
// before anything is trained with it.

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include <popart/ir.hpp>
#include <popart/op.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/sessionoptions.hpp>

#include <popnn/GroupNorm.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Expr.hpp>
#include <popops/Reduce.hpp>

namespace pe = popops::expr;

namespace {

const popart::OperatorIdentifier unitId = {"ipu.proxynorm", "ProxyNormUnit", 1, {5, 5}, 1};
const popart::OperatorIdentifier unitGradId = {"ipu.proxynorm", "ProxyNormUnitGrad", 1, {6, 6}, 5};

enum Input { X, WEIGHT, BIAS, SHIFT, SCALE, INPUTS };

struct Attributes {
  int64_t numGroups;
  float epsilon;
  std::string activation; // "relu" or "silu"

  void append(popart::OpSerialiserBase &os) const {
    os.appendAttribute("num_groups", numGroups);
    os.appendAttribute("epsilon", epsilon);
    os.appendAttribute("activation", activation);
  }
};

// What the unit and its gradient have in common.
class UnitOp : public popart::Op {
public:
  UnitOp(const popart::OperatorIdentifier &id, const Attributes &attributes_,
         const popart::Op::Settings &settings_)
      : popart::Op(id, settings_), attributes(attributes_) {}

  void appendAttributes(popart::OpSerialiserBase &os) const override {
    Op::appendAttributes(os);
    attributes.append(os);
  }
  void appendOutlineAttributes(popart::OpSerialiserBase &os) const override {
    Op::appendOutlineAttributes(os);
    attributes.append(os);
  }
  float getSubgraphValue() const final { return getHighSubgraphValue(); }
  bool requiresRandomSeed() const override { return false; }

  const Attributes attributes;
};

class ProxyNormUnitOp : public UnitOp {
public:
  using UnitOp::UnitOp;

  std::unique_ptr<popart::Op> clone() const final {
    return std::make_unique<ProxyNormUnitOp>(*this);
  }
  std::vector<std::unique_ptr<popart::Op>> getGradOps() final;

  void setup() final { outInfo(0) = inInfo(X); }
};

class ProxyNormUnitGradOp : public UnitOp {
public:
  explicit ProxyNormUnitGradOp(const ProxyNormUnitOp &unit)
      : UnitOp(unitGradId, unit.attributes, unit.settings) {}

  std::unique_ptr<popart::Op> clone() const final {
    return std::make_unique<ProxyNormUnitGradOp>(*this);
  }

  // Inputs are the unit's own, then the gradient of its output; outputs are its inputs' gradients.
  void setup() final {
    for (int i = 0; i < INPUTS; ++i) {
      outInfo(i) = inInfo(i);
    }
  }
  const std::vector<popart::GradInOutMapper> &gradInputInfo() const final {
    static const std::vector<popart::GradInOutMapper> info = {
        {X, X, popart::GradOpInType::In},
        {WEIGHT, WEIGHT, popart::GradOpInType::In},
        {BIAS, BIAS, popart::GradOpInType::In},
        {SHIFT, SHIFT, popart::GradOpInType::In},
        {SCALE, SCALE, popart::GradOpInType::In},
        {INPUTS, 0, popart::GradOpInType::GradOut}};
    return info;
  }
  const std::map<int, int> &gradOutToNonGradIn() const final {
    static const std::map<int, int> info = {
        {X, X}, {WEIGHT, WEIGHT}, {BIAS, BIAS}, {SHIFT, SHIFT}, {SCALE, SCALE}};
    return info;
  }
};

std::vector<std::unique_ptr<popart::Op>> ProxyNormUnitOp::getGradOps() {
  std::vector<std::unique_ptr<popart::Op>> ops;
  ops.emplace_back(std::make_unique<ProxyNormUnitGradOp>(*this));
  return ops;
}

const popart::OpDefinition::DataTypes T = {popart::DataType::FLOAT16, popart::DataType::FLOAT};

const popart::OpDefinition unitDef(
    {popart::OpDefinition::Inputs(
         {{"x", T}, {"weight", T}, {"bias", T}, {"shift", T}, {"scale", T}}),
     popart::OpDefinition::Outputs({{"out", T}}),
     popart::OpDefinition::Attributes(
         {{"num_groups", {"*"}}, {"epsilon", {"*"}}, {"activation", {"relu|silu"}}})});

popart::OpCreator<ProxyNormUnitOp> unitCreator(
    popart::OpDefinitions({{unitId, unitDef}}),
    [](const popart::OpCreatorInfo &info) -> std::unique_ptr<popart::Op> {
      const auto &given = info.attributes;
      return std::make_unique<ProxyNormUnitOp>(
          info.opid,
          Attributes{given.getAttribute<popart::Attributes::Int>("num_groups"),
                     given.getAttribute<popart::Attributes::Float>("epsilon"),
                     given.getAttribute<popart::Attributes::String>("activation")},
          info.settings);
    },
    true);

// A parameter (C) as (1, C, 1, ...), which popops broadcasts over x (N, C, ...).
poplar::Tensor perChannel(const poplar::Tensor &parameter, const poplar::Tensor &x) {
  std::vector<std::size_t> shape(x.rank(), 1);
  shape[1] = x.dim(1);
  return parameter.reshape(shape);
}

poplar::OptionFlags normFlags(const popart::Op &op) {
  const bool strided = op.getIr().getSessionOptions().groupNormStridedChannelGrouping;
  return {{"groupNormStridedChannelGrouping", strided ? "true" : "false"}};
}

class ProxyNormUnitOpx : public popart::popx::Opx {
public:
  ProxyNormUnitOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : popart::popx::Opx(op, devicex) {
    verifyOp<ProxyNormUnitOp>(op, {unitId});
  }

  void grow(poplar::program::Sequence &prog) const final {
    auto &op = getOp<ProxyNormUnitOp>();
    const auto x = getInTensor(X);
    const auto flags = normFlags(op);
    poplar::Tensor mean, invStdDev;
    std::tie(mean, invStdDev) = popnn::gn::groupNormStatistics(
        graph(), x, op.attributes.epsilon, prog, op.attributes.numGroups, false,
        op.getIr().getSessionOptions().enableStableNorm, poplar::FLOAT,
        debugContext("statistics"), flags);
    auto out = popnn::gn::groupNormalise(graph(), x, getInTensor(WEIGHT), getInTensor(BIAS), mean,
                                         invStdDev, prog, debugContext("norm"), flags)
                   .first;
    const std::vector<poplar::Tensor> given = {out, perChannel(getInTensor(SHIFT), x),
                                               perChannel(getInTensor(SCALE), x)};
    if (op.attributes.activation == "relu") {
      popops::mapInPlace(graph(),
                         pe::Mul(pe::Add(pe::Max(pe::_1, pe::Const(0.0f)), pe::_2), pe::_3), given,
                         prog, debugContext("activation"));
    } else {
      popops::mapInPlace(graph(),
                         pe::Mul(pe::Add(pe::Mul(pe::_1, pe::Sigmoid(pe::_1)), pe::_2), pe::_3),
                         given, prog, debugContext("activation"));
    }
    setOutTensor(0, out);
  }
};

class ProxyNormUnitGradOpx : public popart::popx::Opx {
public:
  ProxyNormUnitGradOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : popart::popx::Opx(op, devicex) {
    verifyOp<ProxyNormUnitGradOp>(op, {unitGradId});
  }

  void grow(poplar::program::Sequence &prog) const final {
    auto &op = getOp<ProxyNormUnitGradOp>();
    const auto x = getInTensor(X);
    const auto grad = getInTensor(INPUTS);
    const auto weight = perChannel(getInTensor(WEIGHT), x);
    const auto bias = perChannel(getInTensor(BIAS), x);
    const auto shift = perChannel(getInTensor(SHIFT), x);
    const auto scale = perChannel(getInTensor(SCALE), x);
    const auto flags = normFlags(op);
    poplar::Tensor mean, invStdDev;
    std::tie(mean, invStdDev) = popnn::gn::groupNormStatistics(
        graph(), x, op.attributes.epsilon, prog, op.attributes.numGroups, false,
        op.getIr().getSessionOptions().enableStableNorm, poplar::FLOAT,
        debugContext("statistics"), flags);
    const auto white = popnn::gn::groupNormWhiten(graph(), x, mean, invStdDev, prog,
                                                  debugContext("white"), flags);
    const auto y = popops::map(graph(), pe::Add(pe::Mul(pe::_1, pe::_2), pe::_3),
                               {white, weight, bias}, prog, debugContext("y"));
    poplar::Tensor byScale, local; // grad * (activation(y) + shift), and the gradient of y
    if (op.attributes.activation == "relu") {
      byScale = popops::map(graph(),
                            pe::Mul(pe::_1, pe::Add(pe::Max(pe::_2, pe::Const(0.0f)), pe::_3)),
                            {grad, y, shift}, prog, debugContext("byScale"));
      local = popops::map(graph(),
                          pe::Select(pe::Mul(pe::_1, pe::_3), pe::Const(0.0f),
                                     pe::Gt(pe::_2, pe::Const(0.0f))),
                          {grad, y, scale}, prog, debugContext("local"));
    } else {
      const auto sigmoid = popops::map(graph(), pe::Sigmoid(pe::_1), {y}, prog,
                                       debugContext("sigmoid"));
      byScale = popops::map(graph(), pe::Mul(pe::_1, pe::Add(pe::Mul(pe::_2, pe::_3), pe::_4)),
                            {grad, y, sigmoid, shift}, prog, debugContext("byScale"));
      // d silu / dy = s + y * s * (1 - s)
      local = popops::map(
          graph(),
          pe::Mul(pe::Mul(pe::_1, pe::_4),
                  pe::Add(pe::_3, pe::Mul(pe::Mul(pe::_2, pe::_3),
                                          pe::Sub(pe::Const(1.0f), pe::_3)))),
          {grad, y, sigmoid, scale}, prog, debugContext("local"));
    }
    std::vector<std::size_t> others;
    for (std::size_t i = 0; i < x.rank(); ++i) {
      if (i != 1) {
        others.push_back(i);
      }
    }
    const popops::ReduceParams sum(popops::Operation::ADD);
    const auto scaleGrad = popops::reduce(graph(), byScale, x.elementType(), others, sum, prog,
                                          debugContext("scaleGrad"));
    const auto gradSum = popops::reduce(graph(), grad, x.elementType(), others, sum, prog,
                                        debugContext("gradSum"));
    const auto shiftGrad = popops::mul(graph(), gradSum, getInTensor(SCALE), prog,
                                       debugContext("shiftGrad"));
    const auto xGrad = popnn::gn::groupNormGradients(graph(), white, local, invStdDev,
                                                     getInTensor(WEIGHT), prog, poplar::FLOAT,
                                                     debugContext("xGrad"), flags);
    poplar::Tensor weightGrad, biasGrad;
    std::tie(weightGrad, biasGrad) = popnn::gn::groupNormParamGradients(
        graph(), white, local, prog, poplar::FLOAT, debugContext("affineGrads"), flags);
    setOutTensor(X, xGrad);
    setOutTensor(WEIGHT, weightGrad);
    setOutTensor(BIAS, biasGrad);
    setOutTensor(SHIFT, shiftGrad);
    setOutTensor(SCALE, scaleGrad);
  }
};

popart::popx::OpxCreator<ProxyNormUnitOpx> unitOpxCreator(unitId);
popart::popx::OpxCreator<ProxyNormUnitGradOpx> unitGradOpxCreator(unitGradId);

} // namespace
